"""One consumer of a group as a transport; see `transports/base` for what it promises.

While a chunk is in hand nothing polls. So when partitions move nothing is in flight but a commit,
which the broker takes only if it comes before they moved. A chunk that was not completed is
abandoned: all partitions are paused, polls go on to stay in the group, and before the next chunk
every partition is rewound to what the broker says is committed, because positions in memory would
silently skip what was in hand.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Final

from kafka import TopicPartition
from kafka import errors as kafka_errors

from worker.errors import WorkerError
from worker.events.records import DeadLetter, ErrorKind, Skipped
from worker.logs.logger import log
from worker.transports.base import ChunkAbandonedError
from worker.transports.kafka.client_internals import (
    fetch_ahead,
    read_committed,
)
from worker.transports.kafka.clients import is_member, sentence
from worker.transports.kafka.deadline import Deadline
from worker.transports.kafka.marks import BegunWork
from worker.transports.kafka.member import CALL_SECONDS, POLL_SECONDS, GroupMember
from worker.transports.kafka.pacing import ChunkSize, Retries
from worker.transports.kafka.positions import (
    establish_starts,
    lost_offsets,
    seek_into_range,
)
from worker.transports.kafka.publication import Publication
from worker.transports.kafka.publishers import AtLeastOnce, ExactlyOnce, commit_alone
from worker.transports.kafka.record_batches import Undecodable
from worker.transports.kafka.records import record_of
from worker.transports.kafka.stalls import OpenTransactions, StallDetector
from worker.transports.kafka.undecodable import UndecodableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from kafka.consumer.fetcher import ConsumerRecord
    from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata

    from worker.events.decoding import Decoder
    from worker.events.records import Item, Outcome, Record
    from worker.settings.schema import KafkaSettings
    from worker.transports.kafka.marks import Beginning, Records
    from worker.transports.kafka.member import Polled
    from worker.transports.kafka.publishers import Publisher
    from worker.transports.kafka.records import ProducerRecordEncoder

_LOOK_SECONDS: Final = 2.0
# While records come, only the lag of other partitions is news.
_LOOK_BUSY_SECONDS: Final = 15.0
# Groups of many slow members take longer to rebalance, but that is worth a word.
_JOINING_SECONDS: Final = 15.0
_TAKE_BACK_SECONDS: Final = 0.5
# After these the consumer can be used on.
_LATER: Final = (
    kafka_errors.RetriableError,
    kafka_errors.CommitFailedError,
    kafka_errors.RebalanceInProgressError,
)


class State(Enum):
    """Where a transport stands with its consumer."""

    AWAY = "there is no consumer: it was not made yet, or was thrown away"
    REWINDING = "positions in memory may be ahead of the committed ones: they are set before a poll"
    READY = "positions in memory are the committed ones, or those of a commit under way"
    IN_HAND = "records were handed out and are not committed: nothing polls"


_MOVES: Final = {
    State.AWAY: {State.REWINDING},
    State.REWINDING: {State.AWAY, State.READY, State.IN_HAND},
    State.READY: {State.AWAY, State.REWINDING},
    State.IN_HAND: {State.READY, State.REWINDING},
}


class _MoveError(Exception):
    """A move that the states do not have: a fault of this module."""


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """When a record is too large, and a client too long without progress."""

    max_bytes: int
    stuck_seconds: float


@dataclass(frozen=True, slots=True)
class KafkaChunk:
    """Records of a poll, decoded, and what is needed to complete them."""

    items: Sequence[Item] = ()
    sources: Sequence[ConsumerRecord] = ()
    positions: Mapping[TopicPartition, OffsetAndMetadata] = field(default_factory=dict)
    group: ConsumerGroupMetadata | None = None
    polled: float = 0.0
    alone: bool = False


@dataclass(slots=True)
class TransportReport:
    """What there is to see from outside; written by one thread, read by any."""

    joined: bool = False
    problem: str | None = "not connected yet"
    poll_seconds: float = 0.0
    decode_seconds: float = 0.0
    publish_seconds: float = 0.0
    commit_seconds: float = 0.0
    rebalances: int = 0
    abandoned: int = 0
    retries: int = 0
    lost_to_retention: int = 0
    refused: int = 0
    careful: AbstractSet[TopicPartition] = frozenset()
    lag: Mapping[TopicPartition, int] = field(default_factory=dict)
    hidden: Mapping[TopicPartition, int] = field(default_factory=dict)


class KafkaTransport:
    """One member of a consumer group."""

    def __init__(
        self,
        settings: KafkaSettings,
        decode: Decoder,
        encoder: ProducerRecordEncoder,
        limits: TransportLimits,
    ) -> None:
        """Do nothing yet: the first chunk connects."""
        self.report = TransportReport()
        self._state = State.AWAY
        self._settings = settings
        self._decode = partial(item_of, decode, limits.max_bytes, settings)
        self._encoder = encoder
        self._member = GroupMember(settings, self.report)
        self._publisher: Publisher = (
            ExactlyOnce(settings)
            if settings.guarantee == "exactly-once"
            else AtLeastOnce(settings, lambda: self._member.consumer)
        )
        self._begun = BegunWork()
        self._deadline = Deadline()
        self._chunk_size = ChunkSize(settings.chunk_records, settings.chunk_seconds)
        self._retries = Retries(self.report)
        self._stalls = StallDetector(limits.stuck_seconds)
        self._open_transactions = OpenTransactions()
        # When the last chunk that was completed was polled, and when partitions were last looked after.
        self._last_polled = 0.0
        self._looked_after = 0.0
        # The chunk whose marks say that work has begun on it, and of which nothing was sent yet.
        self._begun_chunk = KafkaChunk()

    @property
    def in_hand(self) -> bool:
        """Return whether records were handed out and are not committed, also after `close`."""
        return self._state is State.IN_HAND

    def chunks(self) -> Iterator[KafkaChunk]:
        """Hand out chunks without end, empty ones while there is nothing or the brokers are away.

        Raises:
            ConfigurationError: certificates or secrets cannot be used.
            UndecodableError: a record batch cannot be read by the client.
            WorkerError: the group's offsets are gone or beyond the end, or the client is stuck.

        """
        while True:
            if self.in_hand:
                self._move(State.REWINDING)
                self.report.abandoned += 1
                self._chunk_size.abandoned()
            chunk = self._next()
            if chunk.items:
                self._move(State.IN_HAND)
                self._begun_chunk = chunk
            yield chunk

    def complete(self, chunk: KafkaChunk, outcomes: Sequence[Outcome]) -> None:
        """Publish outcomes and commit positions, by the chosen guarantee.

        Raises:
            ChunkAbandonedError: it took too long, or the partitions are no longer ours.

        """
        self._begun_chunk = KafkaChunk()
        if chunk.group is None:
            return
        publication = Publication(
            [
                (source, self._encoder.encode(source, outcome))
                for source, outcome in zip(chunk.sources, outcomes, strict=True)
                if not isinstance(outcome, Skipped)
            ],
            self._encoder.replacement,
        )
        started = time.monotonic()
        self._deadline.begin(chunk.polled + self._settings.deadline_seconds)
        try:
            self._deadline.check("the chunk took too long to label")
            if self._settings.guarantee == "at-least-once":
                # The next records come while this chunk is published. With transactions they would
                # grow old, because the end of each is waited for.
                with suppress(kafka_errors.KafkaError):  # which the next poll meets again
                    fetch_ahead(self._member.consumer)
            self._publisher.finish_commit(self._deadline)
            published = time.monotonic()
            self._publisher.publish(publication, chunk.positions, chunk.group, self._deadline)
        except ChunkAbandonedError as error:
            if not self.in_hand:
                self._move(State.REWINDING)
            self._retries.report(str(error))
            if not publication.acknowledged:
                self._take_back(chunk.group, chunk.positions)
            raise
        completed = time.monotonic()
        self._move(State.READY)
        self._last_polled = chunk.polled
        self._begun.completed(chunk.positions)
        if not chunk.alone:
            self._chunk_size.completed(len(chunk.items), completed - chunk.polled)
        self.report.problem = None
        self.report.publish_seconds += publication.acknowledged - published
        self.report.commit_seconds += published - started + completed - publication.acknowledged
        self.report.refused += publication.refused

    def absolve(self) -> None:
        """Note with the brokers that no record of the chunk in hand is to blame for the end to come."""
        if self._begun_chunk.group is not None:
            self._take_back(self._begun_chunk.group, self._begun_chunk.positions)

    def stop_by(self, ends: float) -> None:
        """Abandon the chunk in hand at a point of the monotonic clock; callable at any time."""
        self._deadline.stop_by(ends)

    def close(self, timeout: float) -> None:
        """Leave the group and let the brokers go, within some seconds.

        A commit that is under way goes ahead of the leave on its connection.
        """
        self._publisher.close()
        self._member.drop(timeout)
        self.report.joined = False

    def _move(self, state: State) -> None:
        """Go from one state to another; the only place that does."""
        if state is not self._state and state not in _MOVES[self._state]:
            raise _MoveError(f"a transport cannot go from {self._state} to {state}")
        self._state = state

    def _next(self) -> KafkaChunk:
        """Return the next chunk; whatever the brokers refuse or fail to do is waited out."""
        if self._retries.pausing:
            time.sleep(POLL_SECONDS)
            return KafkaChunk()
        try:
            if self._state is State.AWAY:
                self._member.connect()
                self._move(State.REWINDING)
            if self._state is State.REWINDING:
                if not self._rewind():
                    return KafkaChunk()
                self._move(State.READY)
            return self._poll()
        except (
            kafka_errors.NoOffsetForPartitionError,
            kafka_errors.OffsetOutOfRangeError,
            kafka_errors.LogTruncationError,
        ) as error:
            return self._find_position(error)
        except (*_LATER, ChunkAbandonedError) as error:
            self._wait_out(error)
            return KafkaChunk()
        except (WorkerError, _MoveError):
            raise
        except Exception as error:  # noqa: BLE001 - the client must break in no way that ends the worker
            self._retries.report(sentence(error))
            self._disconnect()
            self._retries.pause()
            return KafkaChunk()

    def _wait_out(self, error: Exception) -> None:
        abandoned = isinstance(error, ChunkAbandonedError)
        self._retries.report(str(error) if abandoned else sentence(error))
        self._retries.pause()

    def _disconnect(self) -> None:
        self._member.drop(CALL_SECONDS)
        self._begun.forget()
        self._move(State.AWAY)

    def _rewind(self) -> bool:
        """Set every partition to what is committed; return False while that is not to be had."""
        if not self._member.stay():
            if self._member.is_kept_waiting(_JOINING_SECONDS):
                self._retries.report("the group does not let this worker in: it rebalances")
            return False
        if waits := self._publisher.prepare(CALL_SECONDS):
            self._retries.report(waits)
            return False
        consumer = self._member.consumer
        committed = read_committed(consumer, consumer.assignment(), CALL_SECONDS)
        if None in committed.values():
            self._disconnect()
            return False
        offsets = {p: commit.offset for p, commit in committed.items() if commit is not None}
        self._publisher.rewound(offsets)
        self._stalls.reset()
        self._begun.forget()
        self._member.go_on_from(offsets)
        return True

    def _poll(self) -> KafkaChunk:
        if self._settings.guarantee == "exactly-once":
            since = time.monotonic() - self._last_polled
            wait = self._settings.commit_interval_seconds - since
            if wait > 0 and not self._begun.careful:
                # In short sleeps: whoever is asked to stop meanwhile does not wait for the next.
                time.sleep(min(wait, POLL_SECONDS))
                return KafkaChunk()
        started = time.monotonic()
        polled = self._member.poll(self._chunk_size.records)
        self.report.poll_seconds += polled.at - started
        if polled.records or polled.changed:
            # Positions in memory are ahead of the committed ones, until a chunk is completed.
            self._move(State.REWINDING)
        if polled.changed:
            # A partition that was kept, or came back, may stand where it was long ago.
            return KafkaChunk()
        if not polled.records:
            return self._look_after_partitions(polled.group, polled.at)
        self._retries.succeeded()
        if polled.at - self._looked_after >= _LOOK_BUSY_SECONDS:
            self._look(polled.at)
        return self._chunk(polled)

    def _chunk(self, polled: Polled) -> KafkaChunk:
        records, _, alone, deadly, _ = self._begin(self._decodable(polled.records), polled.group)
        sources = [source for part in records.values() for source in part]
        positions = {}
        for partition in records:
            position = self._member.position(partition)
            positions[partition] = self._begun.passed(partition, position)
            self._member.see_lag(partition, position)
        started = time.monotonic()
        items: list[Item]
        if deadly:  # which decoding may have been
            reason = "processes died when this record was labelled"
            items = [DeadLetter(record_of(sources[0]), ErrorKind.DEADLY, reason)]
        else:
            items = [self._decode(source) for source in sources]
        self.report.decode_seconds += time.monotonic() - started
        return KafkaChunk(items, sources, positions, polled.group, polled.at, alone is not None)

    def _decodable(self, records: Records) -> Records:
        """Return the records before those at which the worker must stop.

        Raises:
            UndecodableError: a partition stands in front of such records.

        """
        before = {}
        for partition, part in records.items():
            stop = next((index for index, each in enumerate(part) if self._stops_at(each)), None)
            if stop == 0:
                raise UndecodableError(part[0])
            if stop is not None:
                self._member.consumer.seek(partition, part[stop].offset)
            before[partition] = part[:stop]
        return before

    def _stops_at(self, record: ConsumerRecord | Undecodable) -> bool:
        if not isinstance(record, Undecodable):
            return False
        # A header that is damaged itself may name any offset as the last.
        beyond = record.last_offset >= self._member.end_seen(TopicPartition(*record[:2]))
        return beyond or self._settings.undecodable == "stop"

    def _begin(self, records: Records, group: ConsumerGroupMetadata) -> Beginning:
        """Note with the brokers that work begins here, so that deaths can be counted."""
        unknown = self._begun.unknown(records)
        committed = read_committed(self._member.consumer, unknown, CALL_SECONDS) if unknown else {}
        beginning = self._begun.begin(records, committed)
        for partition, offset in beginning.put_back.items():
            self._member.consumer.seek(partition, offset)
        if beginning.marks:
            self._commit(group, beginning.marks)
        self._tell_of_care()
        return beginning

    def _tell_of_care(self) -> None:
        careful = self._begun.careful
        for partition in careful - self.report.careful:
            topic, number = partition
            log.warning(
                "processes have died of a record here: one goes at a time",
                topic=topic,
                partition=number,
            )
        for topic, number in self.report.careful - careful:
            log.info("records go together again", topic=topic, partition=number)
        self.report.careful = careful

    def _take_back(
        self, group: ConsumerGroupMetadata, partitions: Iterable[TopicPartition]
    ) -> None:
        """Note that work which began here has ended, if not well: who stops now has not died of it.

        Only while no commit of the chunk is under way, which this one would take back as well.
        """
        if marks := self._begun.taken_back(partitions):
            with suppress(ChunkAbandonedError):
                # Also where the time to stop is over: closing has some of its own.
                commit_alone(self._publisher, marks, group, Deadline(_TAKE_BACK_SECONDS))

    def _look_after_partitions(self, group: ConsumerGroupMetadata, now: float) -> KafkaChunk:
        """Look after the partitions while nothing comes; markers of transactions move positions."""
        if now - self._looked_after < _LOOK_SECONDS:
            return KafkaChunk()
        try:
            self._publisher.finish_commit(Deadline(CALL_SECONDS))
        except ChunkAbandonedError:
            self._move(State.REWINDING)
            raise
        positions, passed = self._look(now)
        self.report.problem = None
        self._retries.succeeded()
        self._stalls.look(positions, self.report.lag, passed)
        moved = self._begun.moved(positions)
        return KafkaChunk(positions=moved, group=group, polled=now) if moved else KafkaChunk()

    def _look(self, now: float) -> tuple[dict[TopicPartition, int], float]:
        """Look where the partitions stand and end; returns positions, and the seconds since the last look."""
        # A process that was asleep, or waited for brokers, has not looked.
        passed = min(now - self._looked_after, 2 * _LOOK_SECONDS)
        self._looked_after = now
        positions = self._member.look_at_positions()
        ends = {
            partition: offset + self.report.lag[partition]
            for partition, offset in positions.items()
        }
        self._open_transactions.look(ends, self.report.hidden, passed)
        return positions, passed

    def _find_position(self, error: kafka_errors.KafkaError) -> KafkaChunk:
        """Give partitions a position that have none, or one out of range.

        Raises:
            WorkerError: no position would be right.

        """
        consumer = self._member.consumer
        group = consumer.group_metadata()
        if not is_member(consumer, group):
            return KafkaChunk()
        commit = partial(self._commit, group)
        try:
            if isinstance(error, kafka_errors.LogTruncationError):
                raise lost_offsets("the brokers have lost records that this group has read")
            if isinstance(error, kafka_errors.OffsetOutOfRangeError):
                lost = seek_into_range(consumer, error.args[0], commit, CALL_SECONDS)
                self.report.lost_to_retention += lost
            elif not establish_starts(consumer, self._settings, commit, CALL_SECONDS):
                time.sleep(POLL_SECONDS)
        except (kafka_errors.KafkaError, ChunkAbandonedError) as trouble:
            self._wait_out(trouble)
        return KafkaChunk()

    def _commit(
        self, group: ConsumerGroupMetadata, offsets: Mapping[TopicPartition, OffsetAndMetadata]
    ) -> None:
        self._deadline.begin(time.monotonic() + CALL_SECONDS)
        commit_alone(self._publisher, offsets, group, self._deadline)


def item_of(
    decode: Decoder, max_bytes: int, settings: KafkaSettings, source: ConsumerRecord | Undecodable
) -> Item:
    """Return what a record is: an event, a dead letter by its form or size, or nothing to label."""
    record = record_of(source)
    if isinstance(source, Undecodable):
        return DeadLetter(record, ErrorKind.UNDECODABLE, source.reason)
    if source.serialized_value_size > max_bytes:
        return _too_large(record, ErrorKind.TOO_LARGE, "record is", max_bytes)
    if source.serialized_key_size > settings.max_key_bytes:
        return _too_large(record, ErrorKind.KEY_TOO_LARGE, "key is", settings.max_key_bytes)
    if source.serialized_header_size > settings.max_header_bytes:
        most = settings.max_header_bytes
        return _too_large(record, ErrorKind.HEADERS_TOO_LARGE, "headers are", most)
    return Skipped(record) if source.value is None else decode(record)


def _too_large(record: Record, kind: ErrorKind, what: str, limit: int) -> DeadLetter:
    return DeadLetter(record, kind, f"the {what} longer than {limit} bytes")
