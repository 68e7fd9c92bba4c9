"""`worker view`: texts and labels side by side, for people."""

from __future__ import annotations

import json
import sys
import unicodedata
from typing import TYPE_CHECKING, Final

from worker.errors import WorkerError

if TYPE_CHECKING:
    from collections.abc import Iterator

_LABELS_WIDTH: Final = 22
_TEXT_WIDTH: Final = 90


def view(path: str) -> None:
    """Print a line for each labelled message of a file, or of standard input for `-`.

    Raises:
        WorkerError: the file cannot be read, or is not what `worker replay --include-text` writes.

    """
    for number, line in enumerate(_lines(path), 1):
        try:
            message = json.loads(line)
            labels, text = message["labels"], message["text"]
            print(f"{', '.join(labels) or '-':<{_LABELS_WIDTH}} {printable(text)}")
        except (ValueError, TypeError, KeyError):
            raise WorkerError(
                f"{path}, line {number} holds no labels with their text",
                "write it with: worker replay --include-text",
            ) from None


def printable(text: str) -> str:
    """Return a text fit for a terminal: one line, not too long, no control characters."""
    clean = "".join(
        " " if unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"} else char for char in text
    )
    return clean if len(clean) <= _TEXT_WIDTH else f"{clean[: _TEXT_WIDTH - 1]}…"


def _lines(path: str) -> Iterator[bytes]:
    try:
        if path == "-":
            yield from sys.stdin.buffer
            return
        with open(path, "rb") as file:  # noqa: PTH123 - the path is as the user gave it
            yield from file
    except OSError as error:
        raise WorkerError(f"cannot read {path}: {error.strerror}", "check the path") from None
