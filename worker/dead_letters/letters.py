"""Dead letters that are read back, filters that select some, and the reader of their files."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from worker.errors import ConfigurationError, WorkerError
from worker.events.records import FilePlace, TopicPlace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from worker.transports.kafka.records import Omitted

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter that was read back, with the record that it was made from.

    `time` is when the record became a dead letter, which files do not say. `rounds` is how often it
    was sent back before. Where the record was too large to be carried, `omitted` says how large, and
    there are no value, key and headers.
    """

    place: FilePlace | TopicPlace
    kind: str
    reason: str
    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()
    time: datetime | None = None
    rounds: int = 0
    omitted: Omitted | None = None

    @property
    def source(self) -> str:
        """Return the topic or the file that the record came from."""
        return self.place.topic if isinstance(self.place, TopicPlace) else self.place.source

    @property
    def partition(self) -> int | None:
        """Return the partition that the record came from; None for a file."""
        return self.place.partition if isinstance(self.place, TopicPlace) else None

    def with_event(
        self, value: bytes | None, key: bytes | None, headers: Sequence[tuple[str, bytes | None]]
    ) -> Letter:
        """Return the letter with the event that it does not carry."""
        return replace(self, value=value, key=key, headers=headers, omitted=None)

    @property
    def offset(self) -> int:
        """Return the offset in the partition, or the line of the file."""
        return self.place.offset if isinstance(self.place, TopicPlace) else self.place.line


@dataclass(frozen=True, slots=True)
class Filters:
    """Conditions that select dead letters; a letter must meet all of those that are given.

    `since` is the first time that is selected, `until` the first that no longer is.
    """

    kinds: tuple[str, ...] = ()
    source: str | None = None
    partition: int | None = None
    offset: int | None = None
    since: datetime | None = None
    until: datetime | None = None

    def take(self, letter: Letter) -> bool:
        """Return whether a letter meets all conditions."""
        return (
            (not self.kinds or letter.kind in self.kinds)
            and self.source in (None, letter.source)
            and self.partition in (None, letter.partition)
            and self.offset in (None, letter.offset)
            and (self.since is None or (letter.time is not None and letter.time >= self.since))
            and (self.until is None or (letter.time is not None and letter.time < self.until))
        )

    def as_json(self) -> dict[str, Any]:
        """Return the conditions that are given, equal for filters that mean the same."""
        content = {
            "kinds": sorted(set(self.kinds)),
            "source": self.source,
            "partition": self.partition,
            "offset": self.offset,
            "since": self.since and self.since.astimezone(UTC).isoformat(),
            "until": self.until and self.until.astimezone(UTC).isoformat(),
        }
        return {name: value for name, value in content.items() if value not in (None, [])}


def moment(text: str | None) -> datetime | None:
    """Read a time of the command line; a time without an offset is in UTC.

    Raises:
        ConfigurationError: the text is no time in ISO 8601.

    """
    try:
        time = datetime.fromisoformat(text) if text else None
    except ValueError:
        raise ConfigurationError(
            "--since and --until must be times such as 2025-01-31 or 2025-01-31T18:30:00+01:00"
        ) from None
    return time.replace(tzinfo=UTC) if time and time.tzinfo is None else time


def letters_of_files(files: Sequence[Path], filters: Filters) -> Iterator[Letter]:
    """Yield the dead letters of files that `worker replay` wrote; filters are only checked.

    Raises:
        ConfigurationError: a filter asks for what the dead letters of files do not have.
        WorkerError: a file cannot be read, or a line of it is no dead letter.

    """
    if filters.partition is not None or filters.since or filters.until:
        raise ConfigurationError(
            "the dead letters of files have no partition and no time",
            "leave out --partition, --since and --until",
        )
    for path in files:
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    yield _letter_of_line(line, path, number)
        except OSError as error:
            raise WorkerError(f"cannot read {path}: {error.strerror}", "check the path") from None


def _letter_of_line(line: bytes, path: Path, number: int) -> Letter:
    try:
        content = json.loads(line)
        value = (
            _typed(content, "value", str).encode()
            if "value" in content
            else base64.b64decode(_typed(content, "value_base64", str), validate=True)
        )
        kind, reason = _typed(content, "kind", str), _typed(content, "reason", str)
        return Letter(_place_of(content), kind, reason, value)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise WorkerError(
            f"{path}, line {number} is no dead letter", "name a file that `worker replay` wrote"
        ) from None


def _place_of(content: dict[str, Any]) -> FilePlace | TopicPlace:
    if "source" in content:
        part = _typed(content, "part", int) if "part" in content else 0
        return FilePlace(_typed(content, "source", str), _typed(content, "line", int), part)
    return TopicPlace(
        _typed(content, "topic", str),
        _typed(content, "partition", int),
        _typed(content, "offset", int),
    )


def _typed(content: dict[str, Any], name: str, kind: type[_T]) -> _T:
    value = content[name]
    # Not isinstance: Python's booleans are integers, JSON's are not.
    if type(value) is not kind:
        raise TypeError
    return value
