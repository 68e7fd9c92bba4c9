"""Publishes a chunk at least once, or exactly once in a transaction with its positions.

Both publishers do what kafka-python 3.0.12 was seen to need. A record counts as sent only when it
was itself acknowledged. A producer that has failed once is thrown away, since its state is unknown;
it is closed by force, or its thread would go on sending. The client's calls of a transaction have no
time limit of their own, so we wait on their results ourselves.
"""

from __future__ import annotations

import math
import time
import uuid
from contextlib import suppress
from threading import Event
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from kafka import errors as kafka_errors

from worker.logs.logger import log
from worker.transports.base import ChunkAbandonedError
from worker.transports.kafka.batches import failures, send
from worker.transports.kafka.client_internals import (
    begin_commit,
    begin_sending_offsets,
    close_by_force,
    commit_without_waiting,
)
from worker.transports.kafka.clients import new_producer, sentence
from worker.transports.kafka.deadline import Deadline
from worker.transports.kafka.durations import in_ms, in_ms_at_least_one
from worker.transports.kafka.publication import RefusedError, nothing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from kafka import KafkaConsumer, KafkaProducer, TopicPartition
    from kafka.future import Future
    from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata

    from worker.settings.schema import KafkaSettings
    from worker.transports.kafka.batches import SentRecordBatch
    from worker.transports.kafka.publication import Coordinates, Publication
    from worker.transports.kafka.records import ProducerRecord

    Positions: TypeAlias = Mapping[TopicPartition, OffsetAndMetadata]

TOO_LARGE: Final = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)
# The broker will never take a record that fails with these.
_REFUSALS: Final = (
    *TOO_LARGE,
    kafka_errors.InvalidRecordError,
    kafka_errors.InvalidTimestampError,
    kafka_errors.PolicyViolationError,
)
_FENCED: Final = (kafka_errors.ProducerFencedError, kafka_errors.InvalidProducerEpochError)
_FENCED_TOO_OFTEN: Final = 3
_FENCED_WITHIN_SECONDS: Final = 60.0
_LONGEST_BACKOFF: Final = 10.0
_SHARE_OF_TIMEOUT: Final = 0.8
_COMMIT_SECONDS: Final = 5.0


class Publisher(Protocol):
    """Publishes chunks with one of the two guarantees."""

    def prepare(self, timeout: float) -> str | None:
        """Get ready for a chunk, and see decided what an earlier one left undecided.

        Returns what it still waits for after so many seconds, or None once it is ready.

        Raises:
            KafkaError: the brokers do not answer, or refuse.

        """

    def publish(
        self,
        publication: Publication,
        positions: Positions,
        group: ConsumerGroupMetadata,
        deadline: Deadline,
    ) -> None:
        """Publish records, wait until each is acknowledged, and commit positions, by a deadline.

        The commit may still be under way on return: call `finish_commit` before the next call.

        Raises:
            ChunkAbandonedError: not everything was done, or it is not known to be.

        """

    def finish_commit(self, deadline: Deadline) -> None:
        """Wait until what was published last is committed, by a deadline.

        Raises:
            ChunkAbandonedError: it is not, or not known to be.

        """

    def rewound(self, committed: Mapping[TopicPartition, int]) -> None:
        """Take note of the offsets from which records come again, by partition.

        Records of other partitions do not come again.
        """

    def close(self) -> None:
        """Close the producer, whatever it still holds."""


def commit_alone(
    publisher: Publisher, positions: Positions, group: ConsumerGroupMetadata, deadline: Deadline
) -> None:
    """Commit positions without any record, in the same way as those of a chunk, and see it done.

    A plain commit that is late would be taken after a transaction that went further.

    Raises:
        ChunkAbandonedError: it was not done, or is not known to be.

    """
    publisher.finish_commit(deadline)
    publisher.publish(nothing(), positions, group, deadline)
    publisher.finish_commit(deadline)


class AtLeastOnce:
    """Sends, waits for every acknowledgement, then commits the positions.

    The commit goes on while the next chunk is fetched and labelled; that chunk is not sent before
    the commit is done. This process remembers what was acknowledged and not committed, and does not
    send it again. It sends nothing while it is undecided whether earlier records were taken.
    """

    def __init__(self, settings: KafkaSettings, consumer: Callable[[], KafkaConsumer]) -> None:
        """Start without a producer, which `prepare` creates."""
        self._settings = settings
        self._consumer = consumer
        self._producer: KafkaProducer | None = None
        self._sent: list[SentRecordBatch] = []
        self._acknowledged: set[Coordinates] = set()
        # The commit that is under way, and what it commits.
        self._commit: Future | None = None
        self._positions: Positions = {}
        self._committing: AbstractSet[Coordinates] = frozenset()

    def prepare(self, timeout: float) -> str | None:
        """Do as `Publisher` says."""
        with suppress(ChunkAbandonedError):
            # It is not tried again, since the partitions may have gone to another worker meanwhile.
            self._await_commit(Deadline(timeout))
        if self._producer is None:
            # What is undecided is given up with its producer; before that, delivery has no time limit.
            self._producer = new_producer(
                self._settings,
                delivery_timeout_ms=2**31 - 1,
                bootstrap_timeout_ms=in_ms(timeout),
            )
        undecided = [batch for batch in self._sent if not batch.is_done]
        if undecided:
            undecided[-1].wait(timeout)
            return "the brokers have not decided on records that were sent"
        self._take_stock()
        return None

    def publish(
        self,
        publication: Publication,
        positions: Positions,
        group: ConsumerGroupMetadata,  # noqa: ARG002 - the consumer's own commit is fenced by it
        deadline: Deadline,
    ) -> None:
        """Do as `Publisher` says."""
        while True:
            try:
                self._send(publication, deadline)
                break
            except RefusedError as refusal:
                self._discard()
                publication.amend(refusal)
            except kafka_errors.KafkaError as error:
                raise ChunkAbandonedError(sentence(error)) from None
        publication.acknowledged = time.monotonic()
        try:
            self._commit = commit_without_waiting(self._consumer(), positions)
        except kafka_errors.KafkaError as error:
            raise ChunkAbandonedError(sentence(error)) from None
        self._positions, self._committing = positions, publication.messages.keys()

    def finish_commit(self, deadline: Deadline) -> None:
        """Do as `Publisher` says."""
        if self._commit is None:
            return
        error = self._await_commit(deadline)
        if isinstance(error, kafka_errors.RetriableError):
            self._commit_again(deadline)
        elif error is not None:
            raise ChunkAbandonedError(sentence(error))
        # Records of an abandoned chunk that are not part of this commit stay remembered.
        self._acknowledged -= self._committing

    def _await_commit(self, deadline: Deadline) -> Exception | None:
        """Wait until no commit is under way, and return why it has failed, if it has."""
        under_way, self._commit = self._commit, None
        if under_way is None:
            return None
        decided = Event()
        under_way.add_both(lambda _: decided.set())
        if not deadline.wait(decided.wait):
            raise ChunkAbandonedError("the brokers do not commit in time")
        error: Exception | None = under_way.exception
        return error

    def _commit_again(self, deadline: Deadline) -> None:
        timeout = in_ms_at_least_one(min(_COMMIT_SECONDS, deadline.remaining))
        try:
            self._consumer().commit(dict(self._positions), timeout_ms=timeout)
        except kafka_errors.KafkaError as error:
            raise ChunkAbandonedError(sentence(error)) from None

    def rewound(self, committed: Mapping[TopicPartition, int]) -> None:
        """Do as `Publisher` says."""
        self._acknowledged = {
            (topic, partition, offset)
            for topic, partition, offset in self._acknowledged
            if offset >= committed.get((topic, partition), math.inf)
        }

    def close(self) -> None:
        """Do as `Publisher` says."""
        self._discard()

    def _send(self, publication: Publication, deadline: Deadline) -> None:
        if self._producer is None and (
            waits := self.prepare(min(_COMMIT_SECONDS, deadline.remaining))
        ):
            raise ChunkAbandonedError(waits)
        for part in publication.parts(self._settings.dead_letter_topic, self._acknowledged):
            too_large = send_all(self._producer, part, self._sent, deadline)
            sent = self._sent
            self._take_stock()
            _raise_failures(sent, too_large)

    def _take_stock(self) -> None:
        """Remember which records are acknowledged; where one has failed, so has the producer."""
        sent, self._sent = self._sent, []
        failed = failures(sent)
        for batch in sent:
            self._acknowledged.update(
                set(batch.sources) - failed.keys() if failed else batch.sources
            )
        if failed:
            self._discard()

    def _discard(self) -> None:
        if self._producer is not None:
            close_by_force(self._producer)
        self._producer = None


class ExactlyOnce:
    """Sends and commits the positions in one transaction.

    The transaction carries the group metadata of the poll that gave the chunk, by which the broker
    refuses a worker that has lost its partitions. The transactional id only has to be unique among
    the workers that run. After any failure a new producer with the same id is created, for which the
    broker commits or aborts the old transaction; the group's offsets are then read from the broker.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        """Start without a producer, which `prepare` creates."""
        self._settings = settings
        self._id = settings.transactional_id or f"{settings.group}-{uuid.uuid4().hex}"
        self._producer: KafkaProducer | None = None
        self._fenced: list[float] = []
        self._not_before = 0.0

    def prepare(self, timeout: float) -> str | None:
        """Do as `Publisher` says."""
        if self._producer is not None:
            return None
        wait = max(0.0, self._not_before - time.monotonic())
        time.sleep(min(wait, timeout))
        if wait > timeout:
            return "the producer is held back after it was fenced"
        producer = new_producer(
            self._settings,
            transactional_id=self._id,
            transaction_timeout_ms=in_ms(self._settings.transaction_timeout_seconds),
            max_block_ms=in_ms(timeout),
            bootstrap_timeout_ms=in_ms(timeout),
        )
        try:
            producer.init_transactions()
        except kafka_errors.KafkaError:
            close_by_force(producer)
            raise
        self._producer = producer
        return None

    def publish(
        self,
        publication: Publication,
        positions: Positions,
        group: ConsumerGroupMetadata,
        deadline: Deadline,
    ) -> None:
        """Do as `Publisher` says."""
        # The broker aborts what takes longer.
        deadline.shorten(self._settings.transaction_timeout_seconds * _SHARE_OF_TIMEOUT)
        while True:
            try:
                self._transact(publication, positions, group, deadline)
                break
            except RefusedError as refusal:
                self._discard()
                publication.amend(refusal)
            except kafka_errors.KafkaError as error:
                self._discard()
                self._note(error)
                raise ChunkAbandonedError(sentence(error)) from None
            except ChunkAbandonedError:
                self._discard()
                raise

    def finish_commit(self, deadline: Deadline) -> None:
        """Do nothing: a transaction that is done has committed."""

    def rewound(self, committed: Mapping[TopicPartition, int]) -> None:
        """Do nothing: an aborted transaction leaves nothing to remember."""

    def close(self) -> None:
        """Do as `Publisher` says."""
        self._discard()

    def _transact(
        self,
        publication: Publication,
        positions: Positions,
        group: ConsumerGroupMetadata,
        deadline: Deadline,
    ) -> None:
        waits = self.prepare(min(_COMMIT_SECONDS, deadline.remaining))
        producer = self._producer
        if producer is None:
            raise ChunkAbandonedError(str(waits))
        producer.begin_transaction()
        for part in publication.parts(self._settings.dead_letter_topic):
            sent: list[SentRecordBatch] = []
            too_large = send_all(producer, part, sent, deadline)
            _raise_failures(sent, too_large)
        publication.acknowledged = time.monotonic()
        await_result(begin_sending_offsets(producer, positions, group), deadline)
        await_result(begin_commit(producer), deadline)

    def _note(self, error: kafka_errors.KafkaError) -> None:
        """Hold a producer back that was fenced: two with one id would fence each other for ever."""
        if not isinstance(error, _FENCED):
            return
        now = time.monotonic()
        # Between two fencings either of them may well succeed.
        self._fenced = [t for t in self._fenced if now - t < _FENCED_WITHIN_SECONDS] + [now]
        times = len(self._fenced)
        self._not_before = now + min(0.1 * 2**times, _LONGEST_BACKOFF)
        if times >= _FENCED_TOO_OFTEN:
            log.error(
                "fenced again and again",
                transactional_id=self._id,
                times=times,
                advice="another worker seems to use this id: leave kafka.transactional_id out, or "
                "give each worker its own"
                if self._settings.transactional_id
                else "transactions seem to outlast kafka.transaction_timeout_seconds",
            )

    def _discard(self) -> None:
        if self._producer is not None:
            close_by_force(self._producer)
        self._producer = None


def _flushed(producer: KafkaProducer, sends: Sequence[SentRecordBatch], seconds: float) -> bool:
    """Return whether each send has succeeded or failed, after some seconds at most."""
    with suppress(kafka_errors.KafkaError):
        producer.flush(timeout=seconds)
    return all(each.is_done for each in sends)


def await_result(result: Any, deadline: Deadline) -> None:  # noqa: ANN401 - kafka-python has no types
    """Wait for what was begun of a transaction, within a deadline.

    Raises:
        KafkaTimeoutError: it was not done in time, and may be later.
        KafkaError: it failed.

    """
    if not deadline.wait(lambda seconds: result.wait(timeout_ms=in_ms_at_least_one(seconds))):
        raise kafka_errors.KafkaTimeoutError


def send_all(
    producer: KafkaProducer,
    messages: Mapping[Coordinates, ProducerRecord],
    sent: list[SentRecordBatch],
    deadline: Deadline,
) -> list[Coordinates]:
    """Send records, and wait until each has succeeded or failed; `sent` gets their record batches.

    Returns the coordinates of records that are larger than the client may send.

    Raises:
        ChunkAbandonedError: some are undecided.
        KafkaError: a topic cannot be reached, or the producer has failed.

    """

    def check() -> None:
        deadline.check("the brokers do not take records in time")

    too_large = send(producer, messages, sent, check)
    if not deadline.wait(lambda seconds: _flushed(producer, sent, seconds)):
        raise ChunkAbandonedError("the brokers do not acknowledge records in time")
    return too_large


def _raise_failures(sent: Sequence[SentRecordBatch], too_large: Sequence[Coordinates]) -> None:
    failed = failures(sent)
    refused = {source: error for source, error in failed.items() if isinstance(error, _REFUSALS)}
    if too_large:
        raise RefusedError(too_large)
    if len(refused) == 1:
        (error,) = refused.values()
        raise RefusedError(
            refused,
            timestamp=isinstance(error, kafka_errors.InvalidTimestampError),
            too_large=isinstance(error, TOO_LARGE),
        )
    if refused:
        # Records that were sent with a refused one may fail with the same error.
        raise RefusedError(suspects=refused)
    for error in failed.values():
        raise error
