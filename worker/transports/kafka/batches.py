"""Writes a chunk's record batches at once, and hands them to kafka-python's producer.

Its `send` takes a record at a time through checks, a future and a builder that writes byte by byte:
which is most of what a message costs whose label is known (docs/performance.md). Here a partition's records
are joined, and become the content of the client's own record batches. Numbering, compression,
transactions, retries and splitting stay the client's. Tests compare the bytes with its own.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from functools import lru_cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from kafka import TopicPartition
from kafka.partitioner import murmur2

from worker.transports.kafka.client_internals import (
    add_to_transaction,
    append_record_batch,
    errors_of,
    partitions_with_leader,
    record_batch,
    room_in,
    wake,
    write_records,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from kafka import KafkaProducer
    from kafka.record import MemoryRecordsBuilder

    from worker.transports.kafka.publication import Coordinates
    from worker.transports.kafka.records import ProducerRecord

# A record's timestamp in milliseconds, and its key, value and headers as the format has them.
Timed: TypeAlias = tuple[int, bytes]

# The client estimates that a record costs so much beside its content: the header of a record batch,
# and numbers of its own.
_OVERHEAD_BYTES: Final = 61 + 21
_KEYS_REMEMBERED: Final = 65_536
_NAMES_REMEMBERED: Final = 1024


class SentRecordBatch:
    """Records of one partition that are sent together, by the coordinates of their events.

    To the client it is the list of the futures of a record batch's records. The client moves each
    of them to another record batch where it has to split one that the broker finds too large.
    """

    def __init__(self, sources: Sequence[Coordinates], result: Any) -> None:  # noqa: ANN401 - kafka-python has no types
        """Keep whose records these are, and the client's future of the record batch."""
        self.sources = sources
        self._result = result
        self._moved: dict[int, tuple[Any, int]] = {}

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.sources)

    def __getitem__(self, index: int) -> _SentRecord:
        """Return a record as the client moves it."""
        return _SentRecord(self, index)

    def move(self, index: int, result: Any, position: int) -> None:  # noqa: ANN401 - kafka-python has no types
        """Note that a record went to another record batch, and to which position there."""
        self._moved[index] = (result, position)

    @property
    def is_done(self) -> bool:
        """Return whether each record is acknowledged or has failed."""
        return all(result.is_done for result, _ in self._results())

    def wait(self, seconds: float) -> None:
        """Wait for the first result that is still open, for some seconds at most."""
        for result, _ in self._results():
            if not result.is_done:
                result.wait(seconds)
                return

    def failures(self) -> dict[Coordinates, Exception]:
        """Return the errors of the records that have failed; call it once `is_done`."""
        if all(errors_of(result) is None for result, _ in self._results()):
            return {}
        results = zip(self.sources, self._results_of_records(), strict=True)
        return {
            source: errors(position)
            for source, (result, position) in results
            if (errors := errors_of(result)) is not None
        }

    def _results(self) -> Iterator[tuple[Any, int]]:
        return self._results_of_records() if self._moved else iter([(self._result, 0)])

    def _results_of_records(self) -> Iterator[tuple[Any, int]]:
        for index in range(len(self.sources)):
            yield self._moved.get(index, (self._result, index))


def failures(sent: Iterable[SentRecordBatch]) -> dict[Coordinates, Exception]:
    """Return the errors of those records that have failed in record batches that are done."""
    return {source: error for batch in sent for source, error in batch.failures().items()}


class _SentRecord:
    """What the client needs of a record's future when it splits a record batch."""

    def __init__(self, batch: SentRecordBatch, index: int) -> None:
        self._batch = batch
        self._index = index

    def rebind(self, result: Any, position: int) -> None:  # noqa: ANN401 - kafka-python has no types
        self._batch.move(self._index, result, position)


def send(
    producer: KafkaProducer,
    messages: Mapping[Coordinates, ProducerRecord],
    sent: list[SentRecordBatch],
    check: Callable[[], None],
) -> list[Coordinates]:
    """Hand records to a producer, those of a partition in their order.

    `messages` has them by the coordinates of their events. The record batches are added to `sent`,
    also where this raises. `check` is called before each wait for a topic's metadata. Returns the
    coordinates of records that are larger than the client may send.

    Raises:
        KafkaError: a topic cannot be reached, or the producer has failed.

    """
    too_large = []
    parts: dict[TopicPartition, tuple[list[Coordinates], list[Timed]]] = defaultdict(
        lambda: ([], [])
    )
    partition_of: dict[str, Callable[[bytes | None], TopicPartition]] = {}
    largest = producer.config["max_request_size"] - _OVERHEAD_BYTES
    now = int(1000 * time.time())
    for source, message in messages.items():
        topic = message.topic
        if topic not in partition_of:
            check()
            partition_of[topic] = _partitioner(producer, topic)
        content = content_of(message)
        if len(content) > largest:
            too_large.append(source)
            continue
        sources, records = parts[partition_of[topic](message.key)]
        sources.append(source)
        records.append((now if message.timestamp is None else message.timestamp, content))
    for partition, (sources, records) in parts.items():
        _send_to(producer, partition, sources, records, sent)
    return too_large


def _partitioner(producer: KafkaProducer, topic: str) -> Callable[[bytes | None], TopicPartition]:
    """Return how a key chooses the partition, as in Kafka's clients.

    Records without a key all go to one partition, which is drawn for each call.
    """
    numbers = sorted(producer.partitions_for(topic))
    partitions = [TopicPartition(topic, number) for number in numbers]
    available = partitions_with_leader(producer, topic)
    without_key = TopicPartition(topic, random.choice(sorted(available or numbers)))  # noqa: S311 - no secret

    def partition_of(key: bytes | None) -> TopicPartition:
        if key is None:
            return without_key
        return partitions[_hash(key) % len(partitions)]

    return partition_of


@lru_cache(maxsize=_KEYS_REMEMBERED)
def _hash(key: bytes) -> int:
    # The client's hash is plain Python that takes a byte at a time, so known keys are remembered.
    return int(murmur2(key)) & 0x7FFFFFFF


def _send_to(
    producer: KafkaProducer,
    partition: TopicPartition,
    sources: Sequence[Coordinates],
    records: Sequence[Timed],
    sent: list[SentRecordBatch],
) -> None:
    """Put a partition's records into record batches, and those where the client's thread looks."""
    add_to_transaction(producer, partition)
    begin = 0
    while begin < len(records):
        batch = record_batch(producer)
        end = begin + fill(batch, islice(records, begin, None))
        futures_of = partial(SentRecordBatch, sources[begin:end])
        sent.append(append_record_batch(producer, partition, batch, futures_of))
        begin = end
    wake(producer)


def fill(batch: MemoryRecordsBuilder, records: Iterable[Timed]) -> int:
    """Write records into a record batch that is empty, and return how many: one, or all that fit."""
    room = room_in(batch)
    written: list[bytes] = []
    first = latest = 0
    for timestamp, content in records:
        if not written:
            first = latest = timestamp
        # The attributes, of which there are none, then timestamp and offset, both relative.
        record = b"\0" + _VARINT[timestamp - first] + _VARINT[len(written)] + content
        record = _VARINT[len(record)] + record
        room -= len(record)
        if room < 0 and written:
            break
        written.append(record)
        latest = max(latest, timestamp)
    write_records(batch, written, first, latest)
    return len(written)


def content_of(message: ProducerRecord) -> bytes:
    """Return the key, value and headers of a record as the message format has them."""
    key, value, headers = message.key, message.value, message.headers
    parts = [_VARINT[-1]] if key is None else [_VARINT[len(key)], key]
    parts += (_VARINT[len(value)], value, _VARINT[len(headers)])
    for name, content in headers:
        parts += (_name(name), _VARINT[len(content)], content)
    return b"".join(parts)


@lru_cache(maxsize=_NAMES_REMEMBERED)
def _name(name: str) -> bytes:
    encoded = name.encode()
    return _VARINT[len(encoded)] + encoded


class _Varints(dict[int, bytes]):
    """Numbers as Protocol Buffers' sint64; those that it is created with are kept."""

    def __init__(self, numbers: Iterable[int]) -> None:
        super().__init__((number, self.__missing__(number)) for number in numbers)

    def __missing__(self, number: int) -> bytes:
        rest = (number << 1) ^ (number >> 63)
        encoded = bytearray()
        while rest > 0x7F:  # noqa: PLR2004 - seven bits a byte
            encoded.append(0x80 | (rest & 0x7F))
            rest >>= 7
        encoded.append(rest)
        return bytes(encoded)


# -1 stands for the length of a key that is null.
_VARINT: Final = _Varints(range(-1, 8192))
