"""The types that flow through the worker: a record that a transport read, and what became of it.

They are named tuples because several are created for each message, which takes a third of the time
that frozen dataclasses would take.
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
    KEY_TOO_LARGE = "key-too-large"
    HEADERS_TOO_LARGE = "headers-too-large"
    ID_TOO_LONG = "id-too-long"
    ENGINE = "engine"
    DEADLY = "deadly"
    REFUSED = "refused"
    UNDECODABLE = "undecodable"


class FilePlace(NamedTuple):
    """Where in a file a record was read; lines count from 1.

    A line that is longer than `input.max_bytes` is read in parts, and `part` counts them from 1; it
    is 0 for a whole line.
    """

    source: str
    line: int
    part: int = 0

    def __str__(self) -> str:
        """Return FILE:LINE, which is also the id of an event without one."""
        return f"{self.source}:{self.line}"


class TopicPlace(NamedTuple):
    """Where in a topic a record was read."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        """Return TOPIC-PARTITION-OFFSET, which is also the id of an event without one."""
        return f"{self.topic}-{self.partition}-{self.offset}"


class Record(NamedTuple):
    """What a transport read: bytes as they came, and where they were read."""

    value: bytes
    place: FilePlace | TopicPlace


class Event(NamedTuple):
    """A record that was decoded; `kept` has the fields to copy to the output, each value as JSON."""

    record: Record
    id: str | int
    text: str
    kept: Mapping[str, str] = MappingProxyType({})


class LabelledEvent(NamedTuple):
    """An event and the labels and scores that the model gives its text."""

    event: Event
    classification: Classification


class DeadLetter(NamedTuple):
    """A record that cannot be labelled; `reason` is a sentence of ours that quotes no content."""

    record: Record
    kind: ErrorKind
    reason: str


class Skipped(NamedTuple):
    """A record that gets no label: it has no value, or its skip field is true."""

    record: Record


Item: TypeAlias = Event | DeadLetter | Skipped
Outcome: TypeAlias = LabelledEvent | DeadLetter | Skipped
