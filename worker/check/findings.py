"""Findings of `worker check`: a line each, with a level, a subject and a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is.

    OK: all is well. WARN: `worker run` works, but something is at risk or wasted. FAIL: `worker run`
    would not work. SKIP: this could not be looked at.
    """

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Finding:
    """A sentence about a subject, and how bad it is."""

    level: Level
    about: str
    text: str

    def __str__(self) -> str:
        """Return the line that is printed."""
        return f"{self.level:<4}  {self.about}: {self.text}"
