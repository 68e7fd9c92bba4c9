"""Dead letters read back, and which of them are meant; those of `worker replay` come from files."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from worker.errors import ConfigurationError, WorkerError
from worker.events.records import FilePlace, TopicPlace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter that was read back, with the record as it was before."""

    place: FilePlace | TopicPlace
    kind: str
    reason: str
    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()
    time: datetime | None = None
    """When it became one; files do not tell."""
    rounds: int = 0
    """How often it was sent back before."""

    @property
    def source(self) -> str:
        """Return the topic or the file that the record came from."""
        return self.place.topic if isinstance(self.place, TopicPlace) else self.place.source

    @property
    def partition(self) -> int | None:
        """Return the partition of that topic; a file has none."""
        return self.place.partition if isinstance(self.place, TopicPlace) else None

    @property
    def offset(self) -> int:
        """Return the offset in that partition, or the line of the file."""
        return self.place.offset if isinstance(self.place, TopicPlace) else self.place.line


@dataclass(frozen=True, slots=True)
class Filters:
    """Which dead letters are meant: those for which all that is given holds."""

    kinds: tuple[str, ...] = ()
    source: str | None = None
    partition: int | None = None
    offset: int | None = None
    since: datetime | None = None
    until: datetime | None = None

    def take(self, letter: Letter) -> bool:
        """Return whether a letter is meant; `until` itself is not."""
        return (
            (not self.kinds or letter.kind in self.kinds)
            and self.source in (None, letter.source)
            and self.partition in (None, letter.partition)
            and self.offset in (None, letter.offset)
            and (self.since is None or (letter.time is not None and letter.time >= self.since))
            and (self.until is None or (letter.time is not None and letter.time < self.until))
        )

    def as_json(self) -> dict[str, Any]:
        """Return what is given, the same for the same letters."""
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
    """Read a time of the command line; without an offset it is UTC.

    Raises:
        ConfigurationError: it is no time in ISO 8601.

    """
    try:
        given = datetime.fromisoformat(text) if text else None
    except ValueError:
        raise ConfigurationError(
            "--since and --until must be times such as 2025-01-31 or 2025-01-31T18:30:00+01:00"
        ) from None
    return given.replace(tzinfo=UTC) if given and given.tzinfo is None else given


def letters_of_files(files: Sequence[Path], filters: Filters) -> Iterator[Letter]:
    """Yield the dead letters that `worker replay` wrote.

    Raises:
        ConfigurationError: a filter does not fit files.
        WorkerError: a file cannot be read, or holds something else.

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
    if not isinstance(value, kind):
        raise TypeError
    return value
