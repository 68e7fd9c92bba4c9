"""The contract between the pipeline and whatever carries its records.

The guarantee rests on one method. A transport hands out chunks and takes them back complete:

    for chunk in transport.chunks():
        transport.complete(chunk, outcomes_of(chunk))

`complete` first publishes the outcomes and makes them durable, then advances the position, both
at once where the transport can. A chunk that was not completed when the next one is asked for is
abandoned: its records are handed out again before any later record of their partition, unless
the partition has gone to another consumer in the meantime, which then gets them. So nothing is
ever skipped, and nothing is handed out twice at the same time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from worker.events.records import Item, Outcome


class ChunkAbandonedError(Exception):
    """A chunk could not be completed and its position did not move; the text says why."""


class Chunk(Protocol):
    """What a transport hands out: decoded records, and the positions only it understands."""

    @property
    def items(self) -> Sequence[Item]:
        """Return the records in order; a record that could not be read is a dead letter."""


ChunkT = TypeVar("ChunkT", bound=Chunk)


class Transport(Protocol[ChunkT]):
    """What every transport does; see the module for what `complete` promises."""

    def chunks(self) -> Iterator[ChunkT]:
        """Hand out chunks, also empty ones when idle, so that signals are served; may end."""

    def complete(self, chunk: ChunkT, outcomes: Sequence[Outcome]) -> None:
        """Publish one outcome for each item of a chunk, in order, and advance past them.

        Raises:
            ChunkAbandonedError: nothing was advanced, and the chunk will be handed out again.

        """
