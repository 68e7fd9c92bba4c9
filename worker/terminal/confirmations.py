"""Asking a person before something is done that cannot be undone."""

from __future__ import annotations

import sys

from worker.errors import WorkerError
from worker.terminal.sentences import show


def confirmed(question: str, *, yes: bool) -> bool:
    """Return whether a person agrees, by `--yes` or on the terminal, which is asked.

    Raises:
        WorkerError: standard output is closed, so that nobody would see the question.

    """
    if yes:
        return True
    if sys.stdout is None:
        raise WorkerError("standard output is closed, so nothing can be asked", "add --yes")
    if sys.stdin is None or not sys.stdin.isatty():
        show("nothing was done; to do it, run the same command with --yes")
        return False
    show(f"{question} [y/N] ", end="")
    if sys.stdin.readline().strip().lower() in {"y", "yes"}:
        return True
    show("nothing was done")
    return False
