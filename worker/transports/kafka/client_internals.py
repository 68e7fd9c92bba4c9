"""The one module that knows private parts of kafka-python 3.0.12.

Each function says what it does and why the public calls do not suffice. An upgrade of kafka-python
touches this file alone: `tests/transports/kafka/test_client_internals.py` names every private part
that is relied on, and fails with the name of one that is gone. That is why accesses to private
names need no reason of their own here, and the linter's rule for them is off.
"""

# ruff: noqa: SLF001 - see above

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kafka import errors as kafka_errors
from kafka.cluster import collect_hosts
from kafka.consumer.fetcher import Fetcher
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.producer.producer_batch import ProducerBatch
from kafka.protocol.metadata import MetadataRequest
from kafka.record import MemoryRecordsBuilder
from kafka.serializer import Serializer

from worker.transports.kafka.durations import in_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
    from kafka.future import Future
    from kafka.protocol.metadata import CoordinatorType
    from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata

# The message format of Kafka since 0.11, the only one that has headers.
_MAGIC: Final = 2


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


class _RepeatingRecords(Fetcher.PartitionRecords):  # type: ignore[misc]  # kafka-python has no types
    """Records of a fetch that raise again at what cannot be decoded.

    The client's own would be empty from then on, and its poll would never return.
    """

    def take(self, n: int | None = None) -> list[Any]:
        """Return the next records."""
        try:
            records: list[Any] = super().take(n)
        except Exception as error:
            self._next_inline_exception = error
            raise
        return records


class _PatientFetcher(Fetcher):  # type: ignore[misc]  # kafka-python has no types
    """Asks for records when `fetch_ahead` is called, or when a poll finds none.

    The client's own asks whenever a poll gives records away. The answer holds what had come until
    then, and grows old while those records are labelled.
    """

    PartitionRecords = _RepeatingRecords

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


def fetch_only_when_asked(consumer: KafkaConsumer) -> None:
    """Let a consumer fetch only in `fetch_ahead` and in polls that find nothing here.

    From then on its polls also raise again at what they cannot decode, each time.
    """
    consumer._fetcher.__class__ = _PatientFetcher


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


def read_ends_of_batches(consumer: KafkaConsumer) -> list[int]:
    """Let a consumer read no records, but only where the record batches of its fetches end.

    Returns a list, to which the polls add the offset behind each record batch. In public the client
    decodes all that it reads, and fails at a record batch that it cannot decode.
    """
    ends: list[int] = []

    class Ends(Fetcher.PartitionRecords):  # type: ignore[misc]  # kafka-python has no types
        def _unpack_records(self, _: TopicPartition, batches: Any, *__: object) -> Iterator[Any]:  # noqa: ANN401 - kafka-python has no types
            ends.extend(batch.next_offset for batch in batches)
            self.drain()
            yield from ()

    consumer._fetcher.PartitionRecords = Ends
    return ends


# The group


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
    config = producer._accumulator.config
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


def append_record_batch(
    producer: KafkaProducer,
    partition: TopicPartition,
    batch: MemoryRecordsBuilder,
    futures_of: Callable[[Any], Any],
) -> Any:  # noqa: ANN401 - kafka-python has no types
    """Append a record batch to those that wait to be sent to a partition; `wake` sends them.

    `futures_of` is called with the future of the whole batch, and returns what is to the client the
    list of the futures of its records. That is returned.
    """
    accumulator = producer._accumulator
    waiting = ProducerBatch(partition, batch)
    waiting._record_futures = futures = futures_of(waiting.produce_future)
    with accumulator._tp_lock(partition):
        accumulator._batches[partition].append(waiting)
        accumulator._incomplete.add(waiting)
    return futures


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


class _Content(NamedTuple):
    """A value, which may be null as the key may be, and the positions of headers that are null."""

    value: bytes | None
    nulls: tuple[int, ...]


class _Headers(list[tuple[str, bytes]]):
    """Headers of which some become null later, in `NullSerializer`.

    The client's `send` refuses null headers, though the code that it calls can write them. Only its
    sum of their sizes cannot, and that is left out where the list of headers is false.
    """

    def __bool__(self) -> bool:
        """Return false, so that the client adds no sizes up."""
        return False


class NullSerializer(Serializer):  # type: ignore[misc]  # kafka-python has no types
    """The value serializer of a producer for `send_with_nulls`: it puts nulls back after the checks."""

    def serialize(self, topic: str, headers: list[Any], data: _Content) -> bytes | None:  # noqa: ARG002 - the client's form
        """Return the value, and change the list of headers itself."""
        for index in data.nulls:
            headers[index] = (headers[index][0], None)
        return data.value


def send_with_nulls(  # noqa: PLR0913 - the fields of a record, as the client takes them
    producer: KafkaProducer,
    topic: str,
    value: bytes | None,
    *,
    key: bytes | None = None,
    headers: Sequence[tuple[str, bytes | None]],
    partition: int | None,
) -> Any:  # noqa: ANN401 - kafka-python has no types
    """Send a record of which value, key and headers may all be null, and return its future.

    The client refuses a null value beside a null key, and null headers. Where `partition` is None,
    the key chooses one.

    Raises:
        KafkaError: the record is too large, or the producer has failed.

    """
    nulls = tuple(index for index, (_, content) in enumerate(headers) if content is None)
    return producer.send(
        topic,
        _Content(value, nulls),
        key=key,
        headers=_Headers((name, content or b"") for name, content in headers),
        partition=partition,
    )


# Transactions, of which the public calls have no time limit: these begin, and return the result.


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
