"""What of a chunk is published, in which parts, and what takes the place of what is refused."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Final, TypeAlias

from worker.transports.base import ChunkAbandonedError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from kafka.consumer.fetcher import ConsumerRecord

    from worker.transports.kafka.records import ProducerRecord

Coordinates: TypeAlias = tuple[str, int, int]

_PARTS_OF_SUSPECTS: Final = 16


class RefusedError(Exception):
    """Records were refused for good: each of the culprits, or some of the suspects."""

    def __init__(
        self,
        culprits: Collection[Coordinates] = (),
        suspects: Collection[Coordinates] = (),
        *,
        timestamp: bool = False,
    ) -> None:
        """Name culprits or suspects; with `timestamp`, only that of theirs is refused."""
        super().__init__()
        self.culprits = culprits
        self.suspects = suspects
        self.timestamp = timestamp


class Publication:
    """The messages of a chunk, each by the place of its event."""

    def __init__(
        self,
        messages: Sequence[tuple[ConsumerRecord, ProducerRecord]],
        dead_letter: Callable[[ConsumerRecord], ProducerRecord],
    ) -> None:
        """Keep messages, and how to make a dead letter of an event whose label is refused."""
        self.messages = {coordinates_of(source): message for source, message in messages}
        self.refused = 0
        # When all were, by the monotonic clock.
        self.acknowledged = 0.0
        self._suspects: set[Coordinates] = set()
        self._sources = {coordinates_of(source): source for source, _ in messages}
        self._dead_letter = dead_letter

    def parts(
        self, dead_letter_topic: str, acknowledged: Collection[Coordinates] = ()
    ) -> Iterator[dict[Coordinates, ProducerRecord]]:
        """Cut what is not acknowledged into what is sent together, each topic in its order.

        Dead letters, which may have to wait, go first. Those among which a culprit is go in smaller
        parts, so that it is found.
        """
        small = -(-len(self._suspects) // _PARTS_OF_SUSPECTS)
        for letters in (True, False):
            left = [
                place
                for place, message in self.messages.items()
                if (message.topic == dead_letter_topic) is letters and place not in acknowledged
            ]
            for suspects, run in groupby(left, self._suspects.__contains__):
                places = list(run)
                size = small if suspects else len(places)
                for begin in range(0, len(places), size):
                    yield {place: self.messages[place] for place in places[begin : begin + size]}

    def amend(self, refusal: RefusedError) -> None:
        """Put something else in the place of messages that were refused, or suspect them.

        Raises:
            ChunkAbandonedError: a dead letter is refused too: its topic must be set right first.

        """
        self._suspects = set(refusal.suspects)
        for place in refusal.culprits:
            self._replace(place, timestamp=refusal.timestamp)

    def _replace(self, place: Coordinates, *, timestamp: bool) -> None:
        message = self.messages[place]
        if timestamp and message.timestamp is not None:
            self.messages[place] = message.with_timestamp_as_header()
            return
        letter = self._dead_letter(self._sources[place])
        if message.topic == letter.topic:
            raise ChunkAbandonedError(
                "the dead-letter topic refuses a record; see max.message.bytes"
            )
        self.messages[place] = letter
        self.refused += 1


def coordinates_of(source: ConsumerRecord) -> Coordinates:
    """Return the place of an event, as a key."""
    return (source.topic, source.partition, source.offset)
