"""What the commands say and ask."""

from __future__ import annotations

import sys

from worker.terminal import printable


def counted(number: int, noun: str) -> str:
    """Return a number of things as people write it."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def escaped(text: str) -> str:
    """Return a text without what controls a terminal, whole; JSON stays JSON."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or printable(char) == char else f"\\u{ord(char):04x}"
        for char in text
    )


def confirmed(question: str, *, yes: bool) -> bool:
    """Return whether a person agrees: by `--yes`, or on the terminal that is asked."""
    if yes:
        return True
    if sys.stdin is None or not sys.stdin.isatty():
        print("nothing was done; to do it, run the same command with --yes")
        return False
    print(f"{question} [y/N] ", end="", flush=True)
    if sys.stdin.readline().strip().lower() in {"y", "yes"}:
        return True
    print("nothing was done")
    return False
