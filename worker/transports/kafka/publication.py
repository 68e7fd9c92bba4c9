"""Decides in which parts a chunk is published, and what replaces a record that is refused."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Final, TypeAlias

from worker.transports.base import ChunkAbandonedError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from kafka.consumer.fetcher import ConsumerRecord

    from worker.transports.kafka.records import ProducerRecord

# Topic, partition and offset of an event.
Coordinates: TypeAlias = tuple[str, int, int]

# Records among which a culprit must be are sent in so many parts.
_PARTS_OF_SUSPECTS: Final = 16


class RefusedError(Exception):
    """The brokers have refused records for good: each culprit, or at least one of the suspects."""

    def __init__(
        self,
        culprits: Collection[Coordinates] = (),
        suspects: Collection[Coordinates] = (),
        *,
        timestamp: bool = False,
    ) -> None:
        """Name culprits or suspects; with `timestamp`, only the timestamps of culprits are refused."""
        super().__init__()
        self.culprits = culprits
        self.suspects = suspects
        self.timestamp = timestamp


class Publication:
    """The records that a chunk becomes, each by the coordinates of its event."""

    def __init__(
        self,
        messages: Sequence[tuple[ConsumerRecord, ProducerRecord]],
        dead_letter: Callable[[ConsumerRecord], ProducerRecord],
    ) -> None:
        """Keep pairs of an event and what it becomes.

        `dead_letter` returns the dead letter of an event whose label is refused.
        """
        self.messages = {coordinates_of(source): message for source, message in messages}
        self.refused = 0
        # When the brokers had acknowledged all of them, by the monotonic clock.
        self.acknowledged = 0.0
        self._suspects: set[Coordinates] = set()
        self._sources = {coordinates_of(source): source for source, _ in messages}
        self._dead_letter = dead_letter

    def parts(
        self, dead_letter_topic: str, acknowledged: Collection[Coordinates] = ()
    ) -> Iterator[dict[Coordinates, ProducerRecord]]:
        """Yield the parts in which to send what is not acknowledged; each topic keeps its order.

        Dead letters go first, since their topic may refuse them and then the labels must wait.
        Suspects go in smaller parts, so that each refusal narrows down who the culprit is.
        """
        small = -(-len(self._suspects) // _PARTS_OF_SUSPECTS)
        for letters in (True, False):
            left = [
                coordinates
                for coordinates, message in self.messages.items()
                if (message.topic == dead_letter_topic) is letters
                and coordinates not in acknowledged
            ]
            for suspects, run in groupby(left, self._suspects.__contains__):
                part = list(run)
                size = small if suspects else len(part)
                for begin in range(0, len(part), size):
                    yield {each: self.messages[each] for each in part[begin : begin + size]}

    def amend(self, refusal: RefusedError) -> None:
        """Replace the culprits of a refusal, and remember its suspects.

        Raises:
            ChunkAbandonedError: a dead letter is refused too: its topic must be set right first.

        """
        self._suspects = set(refusal.suspects)
        for coordinates in refusal.culprits:
            self._replace(coordinates, timestamp=refusal.timestamp)

    def _replace(self, coordinates: Coordinates, *, timestamp: bool) -> None:
        message = self.messages[coordinates]
        if timestamp and message.timestamp is not None:
            self.messages[coordinates] = message.with_timestamp_as_header()
            return
        letter = self._dead_letter(self._sources[coordinates])
        if message.topic == letter.topic:
            raise ChunkAbandonedError(
                "the dead-letter topic refuses a record; see max.message.bytes"
            )
        self.messages[coordinates] = letter
        self.refused += 1


def coordinates_of(source: ConsumerRecord) -> Coordinates:
    """Return topic, partition and offset of a record."""
    return (source.topic, source.partition, source.offset)
