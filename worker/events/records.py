"""The records that flow: what a transport read, and what became of it.

Named tuples, because several are made for each message, and those take a third of the time that
frozen dataclasses take.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.inference.classifier import Classification


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


class FilePlace(NamedTuple):
    """Where a record was read: a file and a line of it, from 1.

    `part` counts the pieces, from 1, of a line too long to be held in one; 0 is a whole line.
    """

    source: str
    line: int
    part: int = 0

    def __str__(self) -> str:
        """Return the place as people write it."""
        return f"{self.source}:{self.line}"


class TopicPlace(NamedTuple):
    """Where a record was read: a topic, a partition of it, and an offset."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        """Return the place as it stands in ids."""
        return f"{self.topic}-{self.partition}-{self.offset}"


class Record(NamedTuple):
    """What a transport read: bytes as they came, and their place."""

    value: bytes
    place: FilePlace | TopicPlace


class Event(NamedTuple):
    """A chat message; `kept` are the fields that go through to the output, as JSON."""

    record: Record
    id: str | int
    text: str
    kept: Mapping[str, str] = MappingProxyType({})


class LabelledEvent(NamedTuple):
    """An event and what the model says of its text."""

    event: Event
    classification: Classification


class DeadLetter(NamedTuple):
    """A record that cannot be labelled; `reason` is a sentence of ours, without any content."""

    record: Record
    kind: ErrorKind
    reason: str


class Skipped(NamedTuple):
    """A record that asks for no label: it has no value, or says so."""

    record: Record


Item: TypeAlias = Event | DeadLetter | Skipped
Outcome: TypeAlias = LabelledEvent | DeadLetter | Skipped
