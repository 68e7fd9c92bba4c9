"""One consumer of a group as a transport; see `transports/base` for what it promises.

While a chunk is in hand nothing polls. So when partitions move nothing is in flight but a commit,
which the broker takes only if it comes before they moved. A chunk that was not completed is
abandoned: all partitions are paused, polls go on to stay in the group, and before the next chunk
every partition is rewound to what the broker says is committed, because positions in memory would
silently skip what was in hand.
"""

from __future__ import annotations

import math
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from kafka import TopicPartition
from kafka import errors as kafka_errors

from worker.errors import WorkerError
from worker.events.records import DeadLetter, ErrorKind, Skipped
from worker.logs.logger import log
from worker.logs.stacks import log_stacks
from worker.transports.base import ChunkAbandonedError
from worker.transports.kafka.client_internals import (
    close_connections,
    fetch_ahead,
    read_committed,
)
from worker.transports.kafka.clients import is_member, new_consumer, resume, sentence
from worker.transports.kafka.positions import (
    Mark,
    establish_starts,
    lost_offsets,
    seek_into_range,
)
from worker.transports.kafka.publication import Publication
from worker.transports.kafka.publishers import AtLeastOnce, Deadline, ExactlyOnce
from worker.transports.kafka.records import record_of
from worker.transports.kafka.undecodable import UNREADABLE, UndecodableError, readable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from kafka import KafkaConsumer
    from kafka.consumer.fetcher import ConsumerRecord
    from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata

    from worker.events.codec import Decoder
    from worker.events.records import Item, Outcome
    from worker.settings.schema import KafkaSettings
    from worker.transports.kafka.publishers import Publisher
    from worker.transports.kafka.records import ProducerRecord, ProducerRecordEncoder

_POLL_SECONDS: Final = 0.2
_PROBE_SECONDS: Final = 2.0
_CALL_SECONDS: Final = 5.0
_TAKE_BACK_SECONDS: Final = 0.5
_LONGEST_BACKOFF: Final = 5.0
_FIRST_CHUNK_RECORDS: Final = 64
_SECONDS_BETWEEN_COMPLAINTS: Final = 10.0
# The consumer is none the worse for these.
_LATER: Final = (
    kafka_errors.RetriableError,
    kafka_errors.CommitFailedError,
    kafka_errors.RebalanceInProgressError,
)


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
    taken: float = 0.0


@dataclass(slots=True)
class TransportState:
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
    lag: Mapping[TopicPartition, int] = field(default_factory=dict)


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
        self.state = TransportState()
        # Whether records were handed out, and are not committed.
        self.in_hand = False
        self._settings = settings
        self._decode = decode
        self._encoder = encoder
        self._limits = limits
        self._instance = uuid.uuid4().hex[:12]
        self._consumer: KafkaConsumer | None = None
        self._publisher: Publisher = (
            ExactlyOnce(settings)
            if settings.guarantee == "exactly-once"
            else AtLeastOnce(settings, lambda: self._live)
        )
        # Whether the consumer's positions are the committed ones: not while a chunk is in hand.
        self._settled = False
        self._generation: int | None = None
        # Of the partitions in which this process has begun work since the last rebalance.
        self._marks: dict[TopicPartition, Mark] = {}
        self._committed: dict[TopicPartition, int] = {}
        self._deadline = Deadline()
        self._stop_by = math.inf
        self._chunk_records = min(_FIRST_CHUNK_RECORDS, settings.chunk_records)
        # When the last chunk that was completed was taken.
        self._last_taken = 0.0
        self._complained = 0.0
        self._backoff = _POLL_SECONDS
        self._not_before = 0.0
        self._probed = 0.0
        # Positions of partitions with records, and for how long they have been there.
        self._waiting: tuple[dict[TopicPartition, int], float] = ({}, 0.0)

    def chunks(self) -> Iterator[KafkaChunk]:
        """Hand out chunks without end, empty ones while there is nothing or the brokers are away.

        Raises:
            ConfigurationError: certificates or secrets cannot be used.
            UndecodableError: a batch cannot be read by the client.
            WorkerError: the group's offsets are gone or beyond the end, or the client is stuck.

        """
        while True:
            chunk = self._next()
            self.in_hand = bool(chunk.items)
            yield chunk
            if self.in_hand:
                self.state.abandoned += 1
                # If it was too much for its time, it would be again.
                self._chunk_records = max(1, self._chunk_records // 2)

    def complete(self, chunk: KafkaChunk, outcomes: Sequence[Outcome]) -> None:
        """Publish outcomes and commit positions, by the chosen guarantee.

        Raises:
            ChunkAbandonedError: it took too long, or the partitions are no longer ours.

        """
        if chunk.group is None:
            return
        publication = Publication(
            [
                (source, self._encoder.encode(source, outcome))
                for source, outcome in zip(chunk.sources, outcomes, strict=True)
                if not isinstance(outcome, Skipped)
            ],
            self._dead_letter_of_refused,
        )
        started = time.monotonic()
        self._deadline.ends = min(self._stop_by, chunk.taken + self._settings.deadline_seconds)
        try:
            self._deadline.check("the chunk took too long to label")
            if self._settings.guarantee == "at-least-once":
                # They are here when this chunk is published. A transaction's end is waited for.
                with suppress(kafka_errors.KafkaError):  # which the next poll meets again
                    fetch_ahead(self._live)
            self._publisher.settle(self._deadline)
            settled = time.monotonic()
            self._publisher.publish(publication, chunk.positions, chunk.group, self._deadline)
        except ChunkAbandonedError as error:
            self._settled = False
            self._complain(str(error))
            if not publication.acknowledged:
                self._take_back(chunk.group, chunk.positions)
            raise
        completed = time.monotonic()
        self._last_taken = chunk.taken
        self._settled = True
        self.in_hand = False
        self.state.problem = None
        self.state.publish_seconds += publication.acknowledged - settled
        self.state.commit_seconds += settled - started + completed - publication.acknowledged
        self.state.refused += publication.refused
        for partition, commit in chunk.positions.items():
            self._committed[partition] = commit.offset
            self._marks[partition] = Mark.read(commit.metadata)
        self._adapt(len(chunk.items), completed - chunk.taken)

    def stop_by(self, ends: float) -> None:
        """Abandon the chunk in hand at a point of the monotonic clock; callable at any time."""
        self._stop_by = ends
        self._deadline.ends = min(self._deadline.ends, ends)

    def close(self, timeout: float) -> None:
        """Leave the group and let the brokers go, within some seconds.

        A commit that is under way goes ahead of the leave on its connection.
        """
        self._publisher.close()
        self._drop_consumer(timeout)
        self.state.joined = False

    @property
    def _live(self) -> KafkaConsumer:
        if self._consumer is None:
            raise kafka_errors.KafkaConnectionError
        return self._consumer

    def _next(self) -> KafkaChunk:
        """Return the next chunk; whatever the brokers refuse or fail to do is waited out."""
        if time.monotonic() < self._not_before:
            time.sleep(_POLL_SECONDS)
            return KafkaChunk()
        try:
            if self._consumer is None:
                self._consumer = new_consumer(self._settings)
                self._consumer.subscribe(list(self._settings.input_topics))
            if not self._settled and not self._rewind():
                return KafkaChunk()
            return self._poll()
        except (
            kafka_errors.NoOffsetForPartitionError,
            kafka_errors.OffsetOutOfRangeError,
            kafka_errors.LogTruncationError,
        ) as error:
            return self._find_position(error)
        except (*_LATER, ChunkAbandonedError) as error:
            self._complain(_meaning(error))
            self._hold_back()
            return KafkaChunk()
        except WorkerError:
            raise
        except Exception as error:  # noqa: BLE001 - a batch can break the client in any way
            # After such an error the client would never return from its next poll.
            if not isinstance(error, kafka_errors.KafkaError) or isinstance(error, UNREADABLE):
                self._look_for_undecodable()
            self._complain(sentence(error))
            self._drop_consumer(_CALL_SECONDS)
            self._hold_back()
            return KafkaChunk()

    def _hold_back(self) -> None:
        self._not_before = time.monotonic() + self._backoff
        self._backoff = min(2 * self._backoff, _LONGEST_BACKOFF)

    def _rewind(self) -> bool:
        """Set every partition to what is committed; False while the brokers do not answer."""
        consumer = self._live
        consumer.pause(*consumer.assignment())
        # Membership needs polls; records of a partition that is new here come again.
        consumer.poll(timeout_ms=_ms(_POLL_SECONDS))
        self._see_group(consumer.group_metadata())
        if not self.state.joined:
            return False
        if not self._publisher.prepare(_CALL_SECONDS):
            self._complain("the brokers have not decided on records that were sent")
            return False
        committed = read_committed(consumer, consumer.assignment(), _CALL_SECONDS)
        if None in committed.values():
            self._drop_consumer(_CALL_SECONDS)
            return False
        offsets = {p: commit.offset for p, commit in committed.items() if commit is not None}
        for partition, offset in offsets.items():
            consumer.seek(partition, offset)
        self._publisher.rewound(offsets)
        self._waiting = ({}, 0.0)
        resume(consumer)
        self._settled = True
        self._marks = {}
        self._committed = {}
        return True

    def _poll(self) -> KafkaChunk:
        consumer = self._live
        if self._settings.guarantee == "exactly-once":
            since = time.monotonic() - self._last_taken
            time.sleep(max(0.0, self._settings.commit_interval_seconds - since))
        started = time.monotonic()
        careful = any(mark.careful for mark in self._marks.values())
        size = 1 if careful else self._chunk_records
        records = consumer.poll(timeout_ms=_ms(_POLL_SECONDS), max_records=size)
        # What the commit of these records will be judged by; read later, it would be another's.
        group = consumer.group_metadata()
        taken = time.monotonic()
        self.state.poll_seconds += taken - started
        changed = self._see_group(group)
        if records or changed:
            self._settled = False
        if changed:
            # A partition that was kept, or came back, may stand where it was long ago.
            return KafkaChunk()
        if not records:
            return self._idle(group, taken)
        self._backoff = _POLL_SECONDS
        return self._chunk(records, group, taken)

    def _see_group(self, group: ConsumerGroupMetadata) -> bool:
        """Take note of the group after a poll; returns whether it is another than before."""
        self.state.joined = is_member(self._live, group)
        generation = group.generation_id if self.state.joined else None
        changed = generation != self._generation
        if changed and generation is not None:
            self.state.rebalances += 1
            self.state.lag = {}
        self._generation = generation
        return changed

    def _chunk(
        self,
        records: Mapping[TopicPartition, Sequence[ConsumerRecord]],
        group: ConsumerGroupMetadata,
        taken: float,
    ) -> KafkaChunk:
        records, deadly = self._begin(records, group)
        sources = [source for part in records.values() for source in part]
        positions = {}
        for partition in records:
            position = self._live.position(partition, timeout_ms=_ms(_CALL_SECONDS))
            positions[partition] = self._marks[partition].passed(position).at(position)
            highwater = self._live.highwater(partition) or position
            self.state.lag = {**self.state.lag, partition: highwater - position}
        started = time.monotonic()
        items: list[Item] = [self._item(source) for source in sources]
        self.state.decode_seconds += time.monotonic() - started
        if deadly:
            reason = "processes died when this record was labelled"
            items = [DeadLetter(record_of(sources[0]), ErrorKind.DEADLY, reason)]
        return KafkaChunk(items, sources, positions, group, taken)

    def _begin(
        self,
        records: Mapping[TopicPartition, Sequence[ConsumerRecord]],
        group: ConsumerGroupMetadata,
    ) -> tuple[Mapping[TopicPartition, Sequence[ConsumerRecord]], bool]:
        """Note with the brokers that work begins here, so that deaths can be counted.

        Returns the records to go on with, one alone where processes have died, and whether it was
        alone when the last of them died.
        """
        fresh = records.keys() - self._marks.keys()
        for partition, commit in read_committed(self._live, fresh, _CALL_SECONDS).items():
            self._committed[partition] = commit.offset if commit else records[partition][0].offset
            self._marks[partition] = Mark.read(commit.metadata if commit else None)
        careful = next((p for p in records if self._marks[p].careful), None)
        deadly = False
        if careful is not None:
            records = self._first_alone(records, careful)
            mark = self._marks[careful]
            deadly = mark.alone and mark.by != self._instance
        begun = {}
        for partition in records.keys() & (fresh | {careful}):
            until = records[partition][-1].offset + 1
            mark = self._marks[partition].begun(until, self._instance, alone=partition == careful)
            self._marks[partition] = mark
            begun[partition] = mark.at(self._committed[partition])
        if begun:
            self._commit(group, begun)
        return records, deadly

    def _take_back(
        self, group: ConsumerGroupMetadata, partitions: Iterable[TopicPartition]
    ) -> None:
        """Note that work which began here has ended, if not well: who stops now has not died of it.

        Only while no commit of the chunk is under way, which this one would take back as well.
        """
        begun = {
            partition: self._marks[partition].taken_back().at(self._committed[partition])
            for partition in partitions
            if self._marks[partition].starts
        }
        if begun:
            with suppress(ChunkAbandonedError):
                # Also where the time to stop is over: closing has some of its own.
                self._commit(group, begun, time.monotonic() + _TAKE_BACK_SECONDS)

    def _first_alone(
        self, records: Mapping[TopicPartition, Sequence[ConsumerRecord]], careful: TopicPartition
    ) -> Mapping[TopicPartition, Sequence[ConsumerRecord]]:
        """Go on with one record, and put the others back."""
        for partition, part in records.items():
            self._live.seek(partition, part[0].offset + (partition == careful))
        return {careful: records[careful][:1]}

    def _item(self, source: ConsumerRecord) -> Item:
        record = record_of(source)
        if source.value is None:
            return Skipped(record)
        if len(source.value) > self._limits.max_bytes:
            reason = f"the record is longer than {self._limits.max_bytes} bytes"
            return DeadLetter(record, ErrorKind.TOO_LARGE, reason)
        return self._decode(record)

    def _idle(self, group: ConsumerGroupMetadata, now: float) -> KafkaChunk:
        """Look after the partitions while nothing comes; markers of transactions move positions."""
        if now - self._probed < _PROBE_SECONDS:
            return KafkaChunk()
        # A process that was asleep, or waited for brokers, has not looked.
        passed = min(now - self._probed, 2 * _PROBE_SECONDS)
        self._probed = now
        try:
            self._publisher.settle(Deadline(_CALL_SECONDS))
        except ChunkAbandonedError:
            self._settled = False
            raise
        consumer = self._live
        assigned = consumer.assignment()
        positions = {p: consumer.position(p, timeout_ms=_ms(_CALL_SECONDS)) for p in assigned}
        first = TopicPartition(self._settings.input_topics[0], 0)
        ends = consumer.end_offsets(assigned or {first}, timeout_ms=_ms(_CALL_SECONDS))
        self.state.lag = {p: max(0, ends[p] - position) for p, position in positions.items()}
        self.state.problem = None
        self._backoff = _POLL_SECONDS
        self._see_that_it_moves(positions, passed)
        moved = {
            p: self._marks[p].passed(position).at(position)
            for p, position in positions.items()
            if p in self._marks and position > self._committed[p]
        }
        return KafkaChunk(positions=moved, group=group, taken=now) if moved else KafkaChunk()

    def _see_that_it_moves(self, positions: dict[TopicPartition, int], passed: float) -> None:
        """Count the time in which records are there, the brokers answer, and none comes.

        Raises:
            WorkerError: that was too long.

        """
        before, seconds = self._waiting
        waiting = {p: position for p, position in positions.items() if self.state.lag[p]}
        stuck = {p for p, position in waiting.items() if before.get(p) == position}
        self._waiting = (waiting, seconds + passed if stuck else 0.0)
        if stuck and seconds + passed > self._limits.stuck_seconds:
            log_stacks()
            raise WorkerError(
                f"stuck: {len(stuck)} partitions have records, and none has come for "
                f"{self._limits.stuck_seconds:g} seconds",
                "start the worker again",
            )

    def _find_position(self, error: kafka_errors.KafkaError) -> KafkaChunk:
        """Give partitions a position that have none, or one out of range.

        Raises:
            WorkerError: no position would be right.

        """
        group = self._live.group_metadata()
        if not is_member(self._live, group):
            return KafkaChunk()
        commit = partial(self._commit, group)
        try:
            if isinstance(error, kafka_errors.LogTruncationError):
                raise lost_offsets("the brokers have lost records that this group has read")
            if isinstance(error, kafka_errors.OffsetOutOfRangeError):
                lost = seek_into_range(self._live, error.args[0], commit, _CALL_SECONDS)
                self.state.lost_to_retention += lost
            elif not establish_starts(self._live, self._settings, commit, _CALL_SECONDS):
                time.sleep(_POLL_SECONDS)
        except (kafka_errors.KafkaError, ChunkAbandonedError) as trouble:
            self._complain(_meaning(trouble))
            self._hold_back()
        return KafkaChunk()

    def _commit(
        self,
        group: ConsumerGroupMetadata,
        offsets: Mapping[TopicPartition, OffsetAndMetadata],
        ends: float | None = None,
    ) -> None:
        """Commit offsets alone, as those of a chunk are, by some point of the monotonic clock.

        A plain commit that is late would be taken after a transaction that went further.

        Raises:
            ChunkAbandonedError: it was not done, or is not known to be.

        """
        self._deadline.ends = ends or min(self._stop_by, time.monotonic() + _CALL_SECONDS)
        self._publisher.settle(self._deadline)
        nothing = Publication([], self._dead_letter_of_refused)
        self._publisher.publish(nothing, offsets, group, self._deadline)
        self._publisher.settle(self._deadline)

    def _look_for_undecodable(self) -> None:
        """Read each partition by itself from where it stands.

        Raises:
            UndecodableError: a partition cannot be read from there.

        """
        if self._consumer is None:
            return
        positions = {}
        for partition in self._consumer.assignment():
            with suppress(kafka_errors.KafkaError):
                positions[partition] = self._consumer.position(partition, timeout_ms=1000)
        self._drop_consumer(_CALL_SECONDS)
        with suppress(kafka_errors.KafkaError):
            for partition, position in positions.items():
                if position is not None and not readable(self._settings, partition, position):
                    raise UndecodableError(partition.topic, partition.partition, position)

    def _dead_letter_of_refused(self, source: ConsumerRecord) -> ProducerRecord:
        reason = "the brokers do not take the label of this record"
        letter = DeadLetter(record_of(source), ErrorKind.REFUSED, reason)
        return self._encoder.encode(source, letter)

    def _adapt(self, records: int, seconds: float) -> None:
        """Size chunks by what this process labels in the time that a label may wait."""
        if records:
            wanted = int(records / max(seconds, 1e-6) * self._settings.chunk_seconds)
            self._chunk_records = min(max(1, wanted), self._settings.chunk_records)

    def _complain(self, problem: str) -> None:
        """Note that something has failed and will be tried again."""
        self.state.retries += 1
        now = time.monotonic()
        if problem != self.state.problem or now - self._complained > _SECONDS_BETWEEN_COMPLAINTS:
            self._complained = now
            log.warning("waiting", problem=problem)
        self.state.problem = problem

    def _drop_consumer(self, timeout: float) -> None:
        consumer, self._consumer = self._consumer, None
        self._generation = None
        self._marks = {}
        self._committed = {}
        if consumer is not None:
            with suppress(Exception):  # whatever state it is in
                consumer.close(autocommit=False, timeout_ms=_ms(timeout))
            # Where leaving the group fails, that ends before the connections do.
            with suppress(Exception):
                close_connections(consumer)


def _meaning(error: Exception) -> str:
    return str(error) if isinstance(error, ChunkAbandonedError) else sentence(error)


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
