"""What there is to tell: a line each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """What a finding means: fine, at risk, `worker run` would not work, or not looked at."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Finding:
    """What there is to tell, what it is about, and how bad it is."""

    level: Level
    about: str
    text: str

    def __str__(self) -> str:
        """Return the line."""
        return f"{self.level:<4}  {self.about}: {self.text}"
