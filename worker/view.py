"""`worker view`: texts and labels side by side, for people."""

from __future__ import annotations

import io
import json
import sys
import unicodedata
from typing import TYPE_CHECKING, Final

from worker.errors import WorkerError

if TYPE_CHECKING:
    from collections.abc import Iterator

_LABELS_WIDTH: Final = 22
_TEXT_WIDTH: Final = 90
_TURNS_TEXT_AROUND: Final = frozenset(
    ["LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"]
)


def view(path: str) -> None:
    """Print a line for each labelled message of a file, or of standard input for `-`.

    Raises:
        WorkerError: the file cannot be read, or is not what `worker replay --include-text` writes.

    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that is not UTF-8 shows what it can.
        sys.stdout.reconfigure(errors="replace")
    for number, line in enumerate(_lines(path), 1):
        try:
            message = json.loads(line)
            labels, text = message["labels"], message["text"]
            given = printable(", ".join(labels)) or "-"
            print(f"{given:<{_LABELS_WIDTH}} {printable(text)}")
        except (ValueError, TypeError, KeyError, RecursionError):
            raise WorkerError(
                f"{path}, line {number} holds no labels with their text",
                "write it with: worker replay --include-text",
            ) from None


def printable(text: str) -> str:
    """Return a text fit for a terminal: one line, not too long, nothing that controls it."""
    clean = "".join(" " if _controls(char) else char for char in text)
    return clean if len(clean) <= _TEXT_WIDTH else f"{clean[: _TEXT_WIDTH - 1]}…"


def _controls(char: str) -> bool:
    return (
        unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"}
        or unicodedata.bidirectional(char) in _TURNS_TEXT_AROUND
    )


def _lines(path: str) -> Iterator[bytes]:
    try:
        if path == "-":
            yield from sys.stdin.buffer
            return
        with open(path, "rb") as file:  # noqa: PTH123 - the path is as the user gave it
            yield from file
    except OSError as error:
        raise WorkerError(f"cannot read {path}: {error.strerror}", "check the path") from None
