"""What is kept beside each committed offset: where the group began, and work that was begun there.

Kafka keeps a short text with every committed offset. Ours, a `Mark`, says two things that must outlive
every process. One is how many partitions the topic had when the group began, so that a partition that
was added later differs from one whose commit has expired. The other is how often work was begun at
this very offset and never got past it, so that a message that kills its process is found.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from kafka.structs import OffsetAndMetadata

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from kafka import TopicPartition
    from kafka.consumer.fetcher import ConsumerRecord

    Records: TypeAlias = Mapping[TopicPartition, Sequence[ConsumerRecord]]
    Offsets: TypeAlias = dict[TopicPartition, OffsetAndMetadata]

# Where work has begun so often and has not ended, records go one by one.
DEATHS_BEFORE_CARE: Final = 3
# A process may also be killed by chance while a record is alone.
DEATHS_ALONE: Final = 2
# Where a process has died, so few records at most are begun together: among them it is looked for.
_RECORDS_AFTER_DEATH: Final = 64


@dataclass(frozen=True, slots=True)
class Mark:
    """What is kept beside a committed offset.

    `partitions` is how many the topic had when the group began. `starts` counts how often a chunk
    that ended before the offset `until` was begun here and not finished. `alone` counts how many of
    them, the last ones, held only the record at this offset. `by` is the process that began it.
    """

    partitions: int = 0
    starts: int = 0
    until: int = 0
    alone: int = 0
    by: str = ""

    @classmethod
    def read(cls, text: str | None) -> Mark:
        """Return the mark that a text holds, or an empty one where another tool has written it."""
        nothing = cls()
        try:
            mark = cls(**json.loads(text or "{}"))
        except (ValueError, TypeError, RecursionError):
            return nothing
        types, ours = (list(map(type, asdict(each).values())) for each in (mark, nothing))
        return mark if types == ours else nothing

    def at(self, offset: int) -> OffsetAndMetadata:
        """Return an offset to commit, with this mark."""
        default = asdict(Mark())
        content = {name: value for name, value in asdict(self).items() if value != default[name]}
        return OffsetAndMetadata(offset, json.dumps(content, separators=(",", ":")), -1)

    @property
    def careful(self) -> bool:
        """Return whether records must go one by one from here."""
        return self.starts >= DEATHS_BEFORE_CARE

    def is_deadly(self, process: str) -> bool:
        """Return whether the record here has killed its process, alone, often enough."""
        return self.alone - (self.by == process) >= DEATHS_ALONE

    def begun(self, until: int, by: str) -> Mark:
        """Return the mark of a process that begins here with records together."""
        starts = self.starts + (self.by != by)
        return replace(self, starts=starts, until=until, alone=0, by=by)

    def begun_alone(self, by: str) -> Mark:
        """Return the mark of a process that begins with the record here alone."""
        more = self.by != by
        return replace(self, starts=self.starts + more, alone=self.alone + more, by=by)

    def taken_back(self) -> Mark:
        """Return the mark of a process that has begun here, and has not died of it."""
        starts, alone = max(0, self.starts - 1), max(0, self.alone - 1)
        return replace(self, starts=starts, alone=alone, by="")

    def passed(self, offset: int) -> Mark:
        """Return the mark for a position further on."""
        if self.careful and offset < self.until:
            # Who begins there has begun nothing yet, even if it is the same process.
            return replace(self, starts=DEATHS_BEFORE_CARE, alone=0, by="")
        return Mark(self.partitions)


class Beginning(NamedTuple):
    """How to begin with polled records.

    `records` go on; `put_back` says from which offsets the others are to be read again. `alone` is the
    partition of the record that goes on alone, because processes have died there, and `deadly` says that
    it was alone when they died. `marks` are the offsets to commit before any work, so that deaths can be
    counted.
    """

    records: Records
    put_back: Mapping[TopicPartition, int]
    alone: TopicPartition | None
    deadly: bool
    marks: Offsets


class BegunWork:
    """The marks of the partitions in which this process has begun work since the last rebalance."""

    def __init__(self) -> None:
        """Know of no partition yet."""
        self._process = uuid.uuid4().hex[:12]
        self._marks: dict[TopicPartition, Mark] = {}
        self._committed: dict[TopicPartition, int] = {}
        self._last_alone: TopicPartition | None = None

    def forget(self) -> None:
        """Forget all partitions: others may have worked on them meanwhile."""
        self._marks = {}
        self._committed = {}

    @property
    def careful(self) -> set[TopicPartition]:
        """Return the partitions of which records must go one by one."""
        return {partition for partition, mark in self._marks.items() if mark.careful}

    def unknown(self, partitions: Iterable[TopicPartition]) -> set[TopicPartition]:
        """Return those of some partitions whose marks must be read before work begins there."""
        return set(partitions) - self._marks.keys()

    def begin(
        self, records: Records, committed: Mapping[TopicPartition, OffsetAndMetadata | None]
    ) -> Beginning:
        """Note that work begins on polled records; `committed` is of the unknown partitions.

        Partitions in which processes have died take turns with the others, one record at a time.
        """
        for partition, commit in committed.items():
            self._committed[partition] = commit.offset if commit else records[partition][0].offset
            self._marks[partition] = Mark.read(commit.metadata if commit else None)
        alone = self._turn(records)
        begun = self._together(records) if alone is None else {alone: records[alone][:1]}
        put_back = {}
        for partition, part in records.items():
            number = len(begun.get(partition, ()))
            if number < len(part):
                put_back[partition] = part[number].offset
            if not number and partition in committed and not self._marks[partition].careful:
                # Its mark is read anew when work begins there.
                del self._marks[partition], self._committed[partition]
        deadly = alone is not None and self._marks[alone].is_deadly(self._process)
        marks = {}
        for partition in begun.keys() & (committed.keys() | {alone}):
            mark = self._marks[partition]
            if partition == alone:
                mark = mark.begun_alone(self._process)
            else:
                mark = mark.begun(begun[partition][-1].offset + 1, self._process)
            self._marks[partition] = mark
            marks[partition] = mark.at(self._committed[partition])
        return Beginning(begun, put_back, alone, deadly, marks)

    def _turn(self, records: Records) -> TopicPartition | None:
        """Return the partition of which one record goes on alone now, if it is the turn of one."""
        careful = [partition for partition in records if self._marks[partition].careful]
        others = len(careful) < len(records)
        after = [p for p in careful if self._last_alone is None or p > self._last_alone]
        if self._last_alone is not None and others and not after:
            self._last_alone = None
            return None
        self._last_alone = next(iter(sorted(after or careful)), None)
        return self._last_alone

    def _together(self, records: Records) -> dict[TopicPartition, Sequence[ConsumerRecord]]:
        return {
            partition: part[:_RECORDS_AFTER_DEATH] if self._marks[partition].starts else part
            for partition, part in records.items()
            if not self._marks[partition].careful
        }

    def passed(self, partition: TopicPartition, position: int) -> OffsetAndMetadata:
        """Return what to commit when work has got to a position."""
        return self._marks[partition].passed(position).at(position)

    def moved(self, positions: Mapping[TopicPartition, int]) -> Offsets:
        """Return what to commit of partitions that stand beyond their commit without any work."""
        return {
            partition: self.passed(partition, position)
            for partition, position in positions.items()
            if partition in self._marks and position > self._committed[partition]
        }

    def completed(self, positions: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        """Take note of what was committed."""
        for partition, commit in positions.items():
            self._committed[partition] = commit.offset
            self._marks[partition] = Mark.read(commit.metadata)

    def taken_back(self, partitions: Iterable[TopicPartition]) -> Offsets:
        """Return what to commit where work has ended without success, and nobody died of it."""
        return {
            partition: self._marks[partition].taken_back().at(self._committed[partition])
            for partition in partitions
            if self._marks[partition].starts
        }
