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


@dataclass(frozen=True, slots=True)
class Mark:
    """What is kept beside a committed offset.

    `partitions` is how many the topic had when the group began. `starts` counts how often a chunk
    that ended before the offset `until` was begun here and not finished. `alone` is true where the
    last of them held only the record at this offset. `by` is the process that began it.
    """

    partitions: int = 0
    starts: int = 0
    until: int = 0
    alone: bool = False
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

    def begun(self, until: int, by: str, *, alone: bool) -> Mark:
        """Return the mark of a process that begins here."""
        starts = self.starts + (self.by != by)
        return replace(self, starts=starts, until=max(self.until, until), alone=alone, by=by)

    def taken_back(self) -> Mark:
        """Return the mark of a process that has begun here, and has not died of it."""
        return replace(self, starts=max(0, self.starts - 1), alone=False, by="")

    def passed(self, offset: int) -> Mark:
        """Return the mark for a position further on."""
        if self.careful and offset < self.until:
            # Who begins there has begun nothing yet, even if it is the same process.
            return replace(self, starts=DEATHS_BEFORE_CARE, alone=False, by="")
        return Mark(self.partitions)


class Beginning(NamedTuple):
    """How to begin with polled records.

    `alone` is the partition of which the first record goes on alone, because processes have died there.
    `deadly` says that this record was alone when the last of them died. `marks` are the offsets to commit
    before any work, so that deaths can be counted.
    """

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

    def forget(self) -> None:
        """Forget all partitions: others may have worked on them meanwhile."""
        self._marks = {}
        self._committed = {}

    @property
    def careful(self) -> bool:
        """Return whether records must go one by one in any partition."""
        return any(mark.careful for mark in self._marks.values())

    def unknown(self, partitions: Iterable[TopicPartition]) -> set[TopicPartition]:
        """Return those of some partitions whose marks must be read before work begins there."""
        return set(partitions) - self._marks.keys()

    def begin(
        self, records: Records, committed: Mapping[TopicPartition, OffsetAndMetadata | None]
    ) -> Beginning:
        """Note that work begins on polled records; `committed` is of the unknown partitions."""
        for partition, commit in committed.items():
            self._committed[partition] = commit.offset if commit else records[partition][0].offset
            self._marks[partition] = Mark.read(commit.metadata if commit else None)
        alone = next((partition for partition in records if self._marks[partition].careful), None)
        deadly = False
        if alone is not None:
            mark = self._marks[alone]
            deadly = mark.alone and mark.by != self._process
            # The others are put back, and their marks are read anew when work begins on them.
            for partition in committed.keys() - {alone}:
                del self._marks[partition], self._committed[partition]
            records = {alone: records[alone][:1]}
        marks = {}
        for partition in records.keys() & (committed.keys() | {alone}):
            until = records[partition][-1].offset + 1
            mark = self._marks[partition].begun(until, self._process, alone=partition == alone)
            self._marks[partition] = mark
            marks[partition] = mark.at(self._committed[partition])
        return Beginning(alone, deadly, marks)

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
