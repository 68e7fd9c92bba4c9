"""Sentences for people at a terminal, and text from anywhere, made fit to be shown there.

All that commands print goes through `say` and `show`: names of files, labels, topics and brokers come
from others, and must not control a terminal.
"""

from __future__ import annotations

import sys
import unicodedata
from contextlib import suppress
from typing import Final

_TEXT_WIDTH: Final = 90
_TURNS_TEXT_AROUND: Final = frozenset(
    ["LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"]
)


def say(sentence: str) -> None:
    """Print a sentence on standard error; where that is full or closed, the sentence is lost."""
    with suppress(OSError):
        print(_escaped_lines(sentence), file=sys.stderr, flush=True)  # noqa: T201 - the one place


def show(lines: str = "", end: str = "\n") -> None:
    """Print lines on standard output.

    Raises:
        OSError: standard output is full, or nobody reads it any more.

    """
    print(_escaped_lines(lines), end=end, flush=True)  # noqa: T201 - the one place


def counted(number: int, noun: str) -> str:
    """Return a number and the noun for so many things, such as `2 records`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def escaped(text: str) -> str:
    """Return the whole text with what controls a terminal escaped, so that JSON stays JSON."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or printable(char) == char else f"\\u{ord(char):04x}"
        for char in text
    )


def _escaped_lines(text: str) -> str:
    return "\n".join(map(escaped, text.split("\n")))


def printable(text: str) -> str:
    """Return a text as one line that is not too long and holds nothing that controls a terminal."""
    clean = "".join(" " if _controls(char) else char for char in text)
    return clean if len(clean) <= _TEXT_WIDTH else f"{clean[: _TEXT_WIDTH - 1]}…"


def _controls(char: str) -> bool:
    return (
        unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"}
        or unicodedata.bidirectional(char) in _TURNS_TEXT_AROUND
    )
