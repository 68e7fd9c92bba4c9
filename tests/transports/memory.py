"""A topic in memory, with partitions, a consumer group and committed positions.

For tests and for programs that embed the pipeline. It behaves as a broker does where that
matters to the contract: partitions move between members, in-memory positions and committed ones
differ, and a completion under an assignment that is gone is fenced.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from worker.events.records import FilePlace, Item, Outcome, Record
from worker.transports.base import ChunkAbandonedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from worker.events.decoding import Decoder


@dataclass(frozen=True, slots=True)
class MemoryChunk:
    """Records of some partitions; `positions` are the next offsets after them."""

    items: Sequence[Item]
    positions: Mapping[int, int]
    generation: int


@dataclass
class MemoryTopic:
    """The input as a list of values for each partition, and all outcomes as published."""

    partitions: list[list[bytes]]
    outcomes: list[Outcome] = field(default_factory=list)
    committed: dict[int, int] = field(default_factory=dict)
    generation: int = 0
    _members: list[MemoryTransport] = field(default_factory=list)

    def join(self, member: MemoryTransport) -> None:
        """Add a member to the group and share the partitions out anew."""
        self._members.append(member)
        self.generation += 1

    def leave(self, member: MemoryTransport) -> None:
        """Remove a member from the group and share the partitions out anew."""
        self._members.remove(member)
        self.generation += 1

    def assignment(self, member: MemoryTransport) -> list[int]:
        """Return the partitions that a member has now."""
        if member not in self._members:
            return []
        index = self._members.index(member)
        return list(range(index, len(self.partitions), len(self._members)))


class MemoryTransport:
    """One member of a topic's group; its chunks end when its partitions are drained."""

    def __init__(self, topic: MemoryTopic, decode: Decoder, chunk_records: int = 100) -> None:
        """Join the topic's group."""
        self._topic = topic
        self._decode = decode
        self._chunk_records = chunk_records
        topic.join(self)

    def chunks(self) -> Iterator[MemoryChunk]:
        """Hand out what the assigned partitions hold past their committed positions."""
        while (chunk := self._poll()).items:
            yield chunk

    def complete(self, chunk: MemoryChunk, outcomes: Sequence[Outcome]) -> None:
        """Publish and commit at once.

        Raises:
            ChunkAbandonedError: partitions have moved since the chunk was handed out.

        """
        if chunk.generation != self._topic.generation:
            raise ChunkAbandonedError("the partitions have moved")
        self._topic.outcomes.extend(outcomes)
        self._topic.committed.update(chunk.positions)

    def close(self) -> None:
        """Leave the group."""
        self._topic.leave(self)

    def _poll(self) -> MemoryChunk:
        # Every chunk starts from the committed positions: that is what rewinds an abandoned one.
        items: list[Item] = []
        positions = {}
        for partition in self._topic.assignment(self):
            start = self._topic.committed.get(partition, 0)
            room = self._chunk_records - len(items)
            values = self._topic.partitions[partition][start : start + room]
            source = f"memory-{partition}"
            items += [
                self._decode(Record(value, FilePlace(source, offset + 1)))
                for offset, value in enumerate(values, start)
            ]
            positions[partition] = start + len(values)
        return MemoryChunk(items, positions, self._topic.generation)
