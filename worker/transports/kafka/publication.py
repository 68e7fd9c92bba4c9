"""Decides in which parts a chunk is published, and what replaces a record that is refused."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from worker.transports.base import ChunkAbandonedError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

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
        too_large: bool = False,
    ) -> None:
        """Name culprits or suspects.

        With `timestamp`, only the timestamps of culprits are refused; with `too_large`, their sizes.
        """
        super().__init__()
        self.culprits = culprits
        self.suspects = suspects
        self.timestamp = timestamp
        self.too_large = too_large


class Replacement(Protocol):
    """Finds what takes the place of a record that the brokers refuse, if anything can."""

    def __call__(
        self, source: ConsumerRecord, message: ProducerRecord, *, too_large: bool
    ) -> ProducerRecord | None:
        """Return it; `too_large` says whether the size is refused."""


class Publication:
    """The records that a chunk becomes, each by the coordinates of its event."""

    def __init__(
        self,
        messages: Sequence[tuple[ConsumerRecord, ProducerRecord]],
        replacement: Replacement,
    ) -> None:
        """Keep pairs of an event and what it becomes, and what finds the replacement of a refused one."""
        self.messages = {coordinates_of(source): message for source, message in messages}
        self.refused = 0
        # When the brokers had acknowledged all of them, by the monotonic clock.
        self.acknowledged = 0.0
        self._suspects: set[Coordinates] = set()
        self._sources = {coordinates_of(source): source for source, _ in messages}
        self._replacement = replacement

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
            self._replace(coordinates, refusal)

    def _replace(self, coordinates: Coordinates, refusal: RefusedError) -> None:
        message = self.messages[coordinates]
        if refusal.timestamp and message.timestamp is not None:
            self.messages[coordinates] = message.with_timestamp_as_header()
            return
        source = self._sources[coordinates]
        letter = self._replacement(source, message, too_large=refusal.too_large)
        if letter is None:
            raise ChunkAbandonedError(
                "the dead-letter topic refuses a record; see max.message.bytes"
            )
        self.messages[coordinates] = letter
        self.refused += message.topic != letter.topic


def nothing() -> Publication:
    """Return a publication without records, for a commit of positions alone."""

    def replacement(*_: object, **__: object) -> None:
        raise AssertionError("there is no record that could be refused")

    return Publication([], replacement)


def coordinates_of(source: ConsumerRecord) -> Coordinates:
    """Return topic, partition and offset of a record."""
    return (source.topic, source.partition, source.offset)
