"""The records that flow: what a transport read, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.classifier import Classification


class ErrorKind(StrEnum):
    """Why a record became a dead letter."""

    NOT_UTF8 = "not-utf8"
    NOT_JSON = "not-json"
    NO_TEXT = "no-text"
    BAD_ID = "bad-id"
    BAD_ROW = "bad-row"
    TOO_LARGE = "too-large"
    ENGINE = "engine"
    DEADLY = "deadly"
    REFUSED = "refused"
    UNDECODABLE = "undecodable"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record was read: a file and a line of it, from 1.

    `part` counts the pieces, from 1, of a line too long to be held in one; 0 is a whole line.
    """

    source: str
    line: int
    part: int = 0

    def __str__(self) -> str:
        """Return the place as people write it."""
        return f"{self.source}:{self.line}"


@dataclass(frozen=True, slots=True)
class Offset:
    """Where a record was read: a topic, a partition of it, and an offset."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        """Return the place as it stands in ids."""
        return f"{self.topic}-{self.partition}-{self.offset}"


@dataclass(frozen=True, slots=True)
class Record:
    """What a transport read: bytes as they came, and their place."""

    value: bytes
    place: Place | Offset


@dataclass(frozen=True, slots=True)
class Event:
    """A chat message; `kept` are the fields that go through to the output, as JSON."""

    record: Record
    id: str | int
    text: str
    kept: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Labelled:
    """An event and what the model says of its text."""

    event: Event
    classification: Classification


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that cannot be labelled; `reason` is a sentence of ours, without any content."""

    record: Record
    kind: ErrorKind
    reason: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record that asks for no label: it has no value, or says so."""

    record: Record


Item: TypeAlias = Event | DeadLetter | Skipped
Outcome: TypeAlias = Labelled | DeadLetter | Skipped
