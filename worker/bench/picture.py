"""Bars on a logarithmic scale, as SVG."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

_ROW: Final = 30
_TOP: Final = 34
_LEFT: Final = 210
_WIDTH: Final = 470
_PLAIN: Final = "#8a94a6"
_OURS: Final = "#2f7d4f"


class Bar(NamedTuple):
    """A positive value, what stands before and behind its bar, and whether it is one to look at."""

    name: str
    value: float
    text: str
    stands_out: bool = False


def bars(title: str, rows: Sequence[Bar], where: str) -> str:
    """Return a picture of bars from top to bottom; `where` says at the bottom what it was measured on."""
    logs = [math.log10(row.value) for row in rows]
    bottom = min(logs) - 0.5
    lines = []
    for number, (row, log) in enumerate(zip(rows, logs, strict=True)):
        y = _TOP + _ROW * number
        width = _WIDTH * (log - bottom) / (max(logs) - bottom)
        colour = _OURS if row.stands_out else _PLAIN
        lines.append(
            f'<text x="{_LEFT - 10}" y="{y + 15}" text-anchor="end">{escape(row.name)}</text>'
            f'<rect x="{_LEFT}" y="{y}" width="{width:.0f}" height="21" rx="3" fill="{colour}"/>'
            f'<text x="{_LEFT + width + 8:.0f}" y="{y + 15}">{escape(row.text)}</text>'
        )
    end = _TOP + _ROW * len(rows)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 780 {end + 22}" '
        'font-family="system-ui, sans-serif" font-size="13" fill="#24292f">\n'
        f'<rect width="780" height="{end + 22}" fill="#ffffff"/>\n'
        f'<text x="10" y="20" font-weight="600">{escape(title)}</text>\n'
        + "\n".join(lines)
        + f'\n<text x="10" y="{end + 14}" font-size="11" fill="#57606a">{escape(where)}</text>\n'
        "</svg>\n"
    )
