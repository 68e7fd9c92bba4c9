"""The one module that knows private parts of kafka-python 3.0.12.

Each function says what it does and why the public calls do not suffice. An upgrade of kafka-python
touches this file alone: `tests/transports/kafka/test_client_internals.py` names every private part
that is relied on, and fails with the name of one that is gone. That is why accesses to private
names need no reason of their own here, and the linter's rule for them is off.
"""

# ruff: noqa: SLF001 - see above

from __future__ import annotations

import time
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from kafka import errors as kafka_errors
from kafka.cluster import collect_hosts
from kafka.consumer.fetcher import ConsumerRecord, Fetcher
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.producer.producer_batch import ProducerBatch
from kafka.producer.record_accumulator import RecordAccumulator
from kafka.producer.transaction_manager import (
    FindCoordinatorHandler,
    InitProducerIdHandler,
    TransactionManager,
    TxnRequestHandler,
)
from kafka.protocol.consumer.offsets import IsolationLevel
from kafka.protocol.metadata import MetadataRequest
from kafka.record import MemoryRecords, MemoryRecordsBuilder

from worker.transports.kafka.decompression import decompress
from worker.transports.kafka.durations import in_ms
from worker.transports.kafka.record_batches import (
    RecordBatchError,
    Undecodable,
    read_records,
    wrapped,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
    from kafka.consumer.subscription_state import SubscriptionState
    from kafka.future import Future
    from kafka.protocol.metadata import CoordinatorType
    from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata

# The message format of Kafka since 0.11, the only one that has headers.
_MAGIC: Final = 2
# What a poll returns at most, but for its last record: no more is ever held and worked on at once.
_CHUNK_BYTES: Final = 4 * 2**20
# What Python needs for a header beside its bytes.
_HEADER_OBJECT_BYTES: Final = 200


# Clients


def create_client(kind: Callable[..., Any], **options: Any) -> Any:  # noqa: ANN401 - kafka-python has no types
    """Create a client of a kind; where it cannot connect, end the thread that it has started.

    The constructor starts the thread of its network before it connects, and leaves it running when
    it raises.

    Raises:
        KafkaError: the brokers do not answer, or refuse.

    """
    networks: list[KafkaNetClient] = []

    def network(**more: Any) -> KafkaNetClient:  # noqa: ANN401 - kafka-python has no types
        networks.append(KafkaNetClient(**more))
        return networks[-1]

    try:
        return kind(**options, kafka_client=network)
    except kafka_errors.KafkaError:
        for each in networks:
            each.close()
        raise


def close_connections(consumer: KafkaConsumer) -> None:
    """Close the connections of a consumer.

    Its own `close` ends without doing so where leaving the group fails.
    """
    consumer._client.close()


# Reading


class ReadingLimits(NamedTuple):
    """How large a record batch may become when it is decompressed, and the headers of a record."""

    batch_bytes: int
    header_bytes: int


class _SafeRecords(Fetcher.PartitionRecords):  # type: ignore[misc]  # kafka-python has no types
    """Records of a fetch, read by `record_batches`.

    The client's own take some numbers for others than brokers do, decompress a batch whatever comes
    of it, and raise at what they cannot decode, with which all behind it is lost to them.
    """

    limits: ReadingLimits
    room = _CHUNK_BYTES
    """How many bytes may still be taken; the last record may exceed that."""
    next_fetch_offset: int

    def take(self, n: int | None = None) -> list[Any]:
        """Return the next records, at most `n`, and no more than there is room for."""
        records = []
        try:
            for record in islice(self.record_iterator, n):
                records.append(record)
                if self.room <= 0:
                    break
        except Exception:
            # The client would wait for ever for what comes of these records.
            self.drain()
            raise
        return records

    def _unpack_records(self, tp: TopicPartition, batches: Any, *_: object) -> Iterator[Any]:  # noqa: ANN401 - kafka-python has no types
        while (batch := batches.next_batch()) is not None:
            raw = batch._buffer
            last = batch.base_offset
            if batch.magic == _MAGIC:
                last = max(last, batch.last_offset)
            try:
                yield from self._records_of(tp, batch)
            except Exception as error:  # noqa: BLE001 - the bytes of others can break a reader in any way
                reason = str(error) if isinstance(error, RecordBatchError) else "its form is wrong"
                offset = max(batch.base_offset, self.fetch_offset, self.next_fetch_offset)
                if offset <= last:
                    self.room -= len(raw)
                    yield Undecodable(tp.topic, tp.partition, offset, last, bytes(raw), reason)
            self.next_fetch_offset = last + 1
        self.drain()

    def _records_of(self, tp: TopicPartition, batch: Any) -> Iterator[ConsumerRecord]:  # noqa: ANN401 - kafka-python has no types
        if not batch.validate_crc():
            raise RecordBatchError("its checksum is wrong")
        if batch.magic < _MAGIC:
            for old in batch:
                yield self._record(tp, old, old.offset, old.timestamp)
            return
        self.leader_epoch = batch.leader_epoch
        if self._hides(batch):
            return
        data, problem = bytes(batch._buffer[batch._pos :]), None
        if codec := batch.compression_type:
            data, problem = decompress(codec, data, self.limits.batch_bytes)
        records = read_records(
            data,
            batch.records_count,
            batch.last_offset_delta,
            self.fetch_offset - batch.base_offset,
            self.limits.header_bytes,
        )
        try:
            for record in records:
                time = wrapped(batch.first_timestamp + record.timestamp_delta)
                if batch.timestamp_type == batch.LOG_APPEND_TIME:
                    time = batch.max_timestamp
                yield self._record(tp, record, batch.base_offset + record.offset_delta, time)
        except RecordBatchError as error:
            raise RecordBatchError(problem or str(error)) from None

    def _record(
        self,
        tp: TopicPartition,
        record: Any,  # noqa: ANN401 - kafka-python has no types
        offset: int,
        timestamp: int | None,
    ) -> ConsumerRecord:
        self.next_fetch_offset = offset + 1
        key_size = -1 if record.key is None else len(record.key)
        value_size = -1 if record.value is None else len(record.value)
        header_size = record.size_in_bytes - max(0, key_size) - max(0, value_size)
        self.room -= record.size_in_bytes + _HEADER_OBJECT_BYTES * len(record.headers)
        return ConsumerRecord(
            tp.topic,
            tp.partition,
            self.leader_epoch,
            offset,
            -1 if timestamp is None else timestamp,
            None,
            record.key,
            record.value,
            record.headers,
            None,
            key_size,
            value_size,
            header_size,
        )

    def _hides(self, batch: Any) -> bool:  # noqa: ANN401 - kafka-python has no types
        """Return whether a batch marks the end of a transaction, or is of one that was aborted."""
        if self.isolation_level == IsolationLevel.READ_COMMITTED and batch.has_producer_id():
            self._consume_aborted_transactions_up_to(batch.last_offset)
            if self._contains_abort_marker(batch):
                self.aborted_producer_ids.discard(batch.producer_id)
            elif self._is_batch_aborted(batch):
                return True
        return bool(batch.is_control_batch)


class _PatientFetcher(Fetcher):  # type: ignore[misc]  # kafka-python has no types
    """Asks for records when `fetch_ahead` is called, or when a poll finds none.

    The client's own asks whenever a poll gives records away. The answer holds what had come until
    then, and grows old while those records are labelled.
    """

    room = 0

    def fetched_records(
        self,
        max_records: int | None = None,
        update_offsets: bool = True,  # noqa: FBT001, FBT002 - the client's signature
    ) -> Any:  # noqa: ANN401 - kafka-python has no types
        """Return records that are here, by partition, and whether there are more."""
        self.room = _CHUNK_BYTES
        return super().fetched_records(max_records, update_offsets)

    def _append(
        self,
        drained: dict[TopicPartition, list[Any]],
        part: _SafeRecords,
        max_records: int,
        update_offsets: bool,  # noqa: FBT001 - the client's signature
    ) -> int:
        """Add records of a partition, and return how many of `max_records` are used up by them."""
        part.room = self.room
        added: int = super()._append(drained, part, max_records, update_offsets)
        self.room = part.room
        return added if self.room > 0 else max_records

    def fetch_records(
        self,
        max_records: int | None = None,
        update_offsets: bool = True,  # noqa: FBT001, FBT002 - the client's signature
        timeout_ms: float | None = None,
    ) -> Any:  # noqa: ANN401 - kafka-python has no types
        """Return records that are here, by partition, and whether there is nothing to wait for."""
        records, _ = self.fetched_records(max_records, update_offsets=update_offsets)
        if records:
            return records, False
        return super().fetch_records(max_records, update_offsets, timeout_ms)


def fetch_with_care(consumer: KafkaConsumer, limits: ReadingLimits) -> None:
    """Let a consumer fetch only in `fetch_ahead` and in polls that find nothing here.

    From then on each poll returns so many bytes of records at most that they can be held, and what
    cannot be decoded is an `Undecodable` among the records.
    """
    consumer._fetcher.__class__ = _PatientFetcher
    consumer._fetcher.PartitionRecords = _safe_records(limits)


def read_record_batches(
    partition: TopicPartition, data: bytes, limits: ReadingLimits
) -> list[ConsumerRecord | Undecodable]:
    """Return the records of batches as a consumer that fetches with care reads them."""
    records = _safe_records(limits)(0, partition, MemoryRecords(data))
    read: list[ConsumerRecord | Undecodable] = []
    while records.record_iterator is not None:
        records.room = _CHUNK_BYTES
        read += records.take()
    return read


def _safe_records(limits: ReadingLimits) -> type[_SafeRecords]:
    class Records(_SafeRecords):
        pass

    Records.limits = limits
    return Records


def fetch_ahead(consumer: KafkaConsumer) -> None:
    """Ask for records of all partitions of which none are here, for the next poll to find."""
    consumer._fetcher.send_fetches()


def forget_paused_records(consumer: KafkaConsumer) -> None:
    """Forget what was fetched of partitions before they were paused.

    The client keeps it aside, and puts it back only as long as nothing else came meanwhile. If it
    does not, it fetches nothing more of that partition.
    """
    consumer._fetcher._paused_completed_fetches.clear()
    consumer._fetcher._paused_partition_records.clear()


# The group


class TruthfulAssignor(CooperativeStickyAssignor):  # type: ignore[misc]  # kafka-python has no types
    """Tells the group which partitions its consumer owns when it joins.

    The client's own tells what it was last assigned, also when it has lost that with its membership.
    The leader then gives such a partition to nobody and waits for its revocation, which never comes:
    it is read by no member until some other rebalance.
    """

    def __init__(self) -> None:
        """Own nothing, as long as no consumer is told of."""
        super().__init__()
        self.subscription: SubscriptionState | None = None

    def metadata(self, topics: Iterable[str]) -> Any:  # noqa: ANN401 - kafka-python has no types
        """Return what a member says of itself when it joins."""
        if self.subscription is not None:
            self.member_assignment = sorted(self.subscription.assigned_partitions())
        return super().metadata(topics)


def tell_ownership(assignor: TruthfulAssignor, consumer: KafkaConsumer) -> None:
    """Let an assignor tell what a consumer owns; its consumer has been made with it."""
    assignor.subscription = consumer._subscription


def rejoin_where_forgotten(consumer: KafkaConsumer) -> None:
    """Let a consumer that is between two generations join, where it has forgotten to.

    While a join goes on and the topic's metadata settles, the client forgets for good that it was
    joining, and nothing public reminds it.
    """
    if not consumer._coordinator.need_rejoin():
        consumer._coordinator.request_rejoin()


def read_committed(
    consumer: KafkaConsumer, partitions: Iterable[TopicPartition], timeout: float
) -> dict[TopicPartition, OffsetAndMetadata | None]:
    """Return what the group has committed, from the broker, all of one moment.

    The public call asks for one partition at a time, so a group that begins meanwhile would seem to
    have begun without some of its partitions. The timeout is in seconds.

    Raises:
        KafkaError: the broker does not answer in time.

    """
    coordinator = consumer._coordinator
    # An answer that came too late for an earlier call would be taken for this one's.
    coordinator._offset_fetch_futures.clear()
    wanted = list(partitions)
    committed = coordinator.fetch_committed_offsets(wanted, timeout_ms=in_ms(timeout))
    return {partition: committed.get(partition) for partition in wanted}


def commit_without_waiting(
    consumer: KafkaConsumer, positions: Mapping[TopicPartition, OffsetAndMetadata]
) -> Future:
    """Begin to commit; the future fails where the consumer has lost its partitions meanwhile.

    While the public call looks for the group's coordinator, its future is that of the search.
    """
    return consumer._coordinator._do_commit_offsets_async(dict(positions))


# Producing


def partitions_with_leader(producer: KafkaProducer, topic: str) -> set[int]:
    """Return the partitions of a topic that can be written to now, as far as the client knows."""
    return producer._metadata.available_partitions_for_topic(topic) or set()


def record_batch(producer: KafkaProducer) -> MemoryRecordsBuilder:
    """Return an empty record batch of the size and the compression of a producer."""
    return _record_batch(producer._accumulator)


def _record_batch(accumulator: RecordAccumulator) -> MemoryRecordsBuilder:
    config = accumulator.config
    return MemoryRecordsBuilder(_MAGIC, config["compression_attrs"], config["batch_size"])


def room_in(batch: MemoryRecordsBuilder) -> int:
    """Return how many bytes of records fit into a record batch."""
    inner = batch._builder
    room: int = inner._batch_size - len(inner._buffer)
    return room


def write_records(
    batch: MemoryRecordsBuilder, records: Sequence[bytes], first: int, latest: int
) -> None:
    """Write encoded records into a record batch that is empty, all at once.

    `first` and `latest` are the timestamp of the first record and the highest one, in milliseconds.
    The client's own call takes a record at a time, and writes it byte by byte.
    """
    inner = batch._builder
    inner._buffer += b"".join(records)
    inner._first_timestamp, inner._max_timestamp = first, latest
    inner._num_records = batch._next_offset = len(records)
    inner._last_offset = len(records) - 1


def add_to_transaction(producer: KafkaProducer, partition: TopicPartition) -> None:
    """Make a partition part of the transaction, if the producer has one."""
    manager = producer._transaction_manager
    if manager.is_transactional():
        manager.maybe_add_partition_to_transaction(partition)


class SentRecords(Protocol):
    """What `producer_batch` takes for the futures of a batch's records; it sets the `result`."""

    result: Any

    def split(
        self, partition: TopicPartition, new_batch: Callable[[], MemoryRecordsBuilder]
    ) -> Sequence[ProducerBatch]:
        """Return batches that take the place of this one."""


def producer_batch(
    partition: TopicPartition, batch: MemoryRecordsBuilder, sent: SentRecords
) -> ProducerBatch:
    """Return what the client sends and waits for: a record batch to a partition."""
    waiting = ProducerBatch(partition, batch)
    waiting._record_futures = sent
    sent.result = waiting.produce_future
    return waiting


def append_batch(producer: KafkaProducer, waiting: ProducerBatch) -> None:
    """Append a batch to those that wait to be sent; `wake` sends them."""
    accumulator = producer._accumulator
    with accumulator._tp_lock(waiting.topic_partition):
        accumulator._batches[waiting.topic_partition].append(waiting)
        accumulator._incomplete.add(waiting)


class _SplittingAccumulator(RecordAccumulator):  # type: ignore[misc]  # kafka-python has no types
    """Splits a batch that the broker finds too large without reading its records back.

    The client's own does, and fails at names of headers that are not UTF-8.
    """

    def split_and_reenqueue(self, batch: ProducerBatch, now: float | None = None) -> int:
        """Put smaller batches in the place of one, and return how many."""
        if isinstance(batch._record_futures, list):
            return int(super().split_and_reenqueue(batch, now))
        partition = batch.topic_partition
        if self._transaction_manager and batch.has_sequence:
            # The broker has taken none of the numbers, so the new ones begin there.
            self._transaction_manager.set_sequence_number(partition, batch.base_sequence)
        parts = batch._record_futures.split(partition, lambda: _record_batch(self))
        with self._tp_lock(partition):
            for part in reversed(parts):
                part.created, part.attempts = batch.created, batch.attempts
                part.last_attempt = time.monotonic() if now is None else now
                self._batches[partition].appendleft(part)
                self._incomplete.add(part)
        # Who waits for the batch itself is to look anew.
        batch.produce_future._latch.set()
        return len(parts)


def split_with_care(producer: KafkaProducer) -> None:
    """Let a producer split the batches of `producer_batch` by what these say."""
    producer._accumulator.__class__ = _SplittingAccumulator


def errors_of(result: Any) -> Callable[[int], Exception] | None:  # noqa: ANN401 - kafka-python has no types
    """Return the errors, by the position of a record, that the result of a batch holds, if any."""
    errors: Callable[[int], Exception] | None = result.value[-1]
    return errors


def wake(producer: KafkaProducer) -> None:
    """Let the client's thread look for work now."""
    producer._sender.wakeup()


def close_by_force(producer: KafkaProducer) -> None:
    """End a producer at once, whatever it still holds.

    `close` alone raises at a record that is still under way, and its thread sends on.
    """
    producer._sender.force_close()
    producer._sender.join(1)
    try:
        producer.close(timeout=0)
    except kafka_errors.KafkaError:
        # Else it would be closed again when it is collected.
        producer._closed = True


# Transactions, of which the public calls have no time limit: these begin, and return the result.


class _WaryTransactionManager(TransactionManager):  # type: ignore[misc]  # kafka-python has no types
    """Fails where the connection is lost on which a request of a transaction was sent.

    The client's own sends it again. The first one may still be on its way: when it arrives, it ends
    the transaction that is open then, or takes positions back (KAFKA-17754). A producer that takes
    the place of this one fences it.
    """

    def _enqueue_request(self, handler: TxnRequestHandler) -> None:
        if not isinstance(handler, InitProducerIdHandler | FindCoordinatorHandler):
            handler.on_complete = partial(_complete_or_fail, handler)
        super()._enqueue_request(handler)


def _complete_or_fail(handler: TxnRequestHandler, correlation_id: int, answer: Any) -> None:  # noqa: ANN401 - kafka-python has no types
    if isinstance(answer, kafka_errors.KafkaConnectionError):
        handler.transaction_manager.clear_in_flight_transactional_request_correlation_id()
        handler.fatal_error(answer)
    else:
        type(handler).on_complete(handler, correlation_id, answer)


def never_send_twice_in_a_transaction(producer: KafkaProducer) -> None:
    """Let a transactional producer fail where the connection is lost that a request was sent on."""
    producer._transaction_manager.__class__ = _WaryTransactionManager


def begin_sending_offsets(
    producer: KafkaProducer,
    positions: Mapping[TopicPartition, OffsetAndMetadata],
    group: ConsumerGroupMetadata,
) -> Any:  # noqa: ANN401 - kafka-python has no types
    """Begin to make the positions of a group part of the transaction."""
    result = producer._transaction_manager.send_offsets_to_transaction(dict(positions), group)
    wake(producer)
    return result


def begin_commit(producer: KafkaProducer) -> Any:  # noqa: ANN401 - kafka-python has no types
    """Begin to commit the transaction."""
    result = producer._transaction_manager.begin_commit()
    wake(producer)
    return result


def begin_abort(producer: KafkaProducer) -> Any:  # noqa: ANN401 - kafka-python has no types
    """Begin to abort the transaction."""
    result = producer._transaction_manager.begin_abort()
    wake(producer)
    return result


def last_error(producer: KafkaProducer) -> kafka_errors.KafkaError | None:
    """Return why a transactional producer has failed; its calls say only that it has."""
    return producer._transaction_manager.last_error


# Asking brokers


def ask_broker(
    admin: KafkaAdminClient, request: object, coordinator: tuple[CoordinatorType, str] | None
) -> Any:  # noqa: ANN401 - kafka-python has no types
    """Send a request to any broker, or to the coordinator of something, and return the response.

    The public calls of the admin client send only what it is there for.

    Raises:
        KafkaError: the broker does not answer, or no broker coordinates that.

    """

    async def send() -> Any:  # noqa: ANN401 - kafka-python has no types
        node = None
        if coordinator:
            kind, key = coordinator
            node = await admin._find_coordinator_id(key, kind)
        return await admin._manager.send(request, node_id=node)

    return admin._manager.run(send)


def host_and_port_of_broker(address: str) -> tuple[str, int]:
    """Return host and port of a broker's address, as the client reads it.

    Raises:
        ValueError: it is not host:port.

    """
    ((host, port, _),) = collect_hosts([address])
    return host, port


def ask_for_brokers(
    address: str, options: Mapping[str, Any], seconds: float
) -> list[tuple[str, int]]:
    """Log in to one broker, and return host and port of the brokers that it names.

    The clients' constructors say only that no broker answers, not what one has said.

    Raises:
        KafkaProtocolError: it hangs up at the first request.
        KafkaError: it does not answer, or refuses.

    """
    options = {**options, "bootstrap_servers": [address]}
    net = NetworkSelector(**options)
    manager = KafkaConnectionManager(net, **options)

    async def ask() -> list[tuple[str, int]]:
        (broker,) = manager.cluster.bootstrap_brokers()
        connection = manager.get_connection(broker.node_id, timeout_ms=in_ms(seconds))
        try:
            await connection
        except kafka_errors.KafkaConnectionError:
            # One that hangs up at the first request has not even heard of the login.
            if connection.broker_version_data is None:
                raise kafka_errors.KafkaProtocolError from None
            raise
        answer = await connection.send_request(MetadataRequest(topics=[]))
        return [(broker.host, broker.port) for broker in answer.brokers]

    net.start()
    try:
        addresses: list[tuple[str, int]] = manager.run(ask)
        return addresses
    finally:
        manager.close()
        net.close()
