"""Record batches of a chunk, written at once and handed to kafka-python's producer.

Its `send` takes a record at a time through checks, a future and a builder that writes byte by byte:
most of what a message costs whose label is known (docs/performance.md). Here a partition's records
are joined, and become the content of the client's own batches. Numbering, compression, transactions,
retries and splitting stay the client's. That uses private parts of kafka-python 3.0.12, which is
pinned; tests compare the bytes with its own.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from kafka import TopicPartition
from kafka.partitioner.default import murmur2
from kafka.producer.producer_batch import ProducerBatch
from kafka.record.memory_records import MemoryRecordsBuilder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from worker.transports.kafka.publication import Coordinates
    from worker.transports.kafka.records import ProducerRecord

# A record's timestamp in milliseconds, and its key, value and headers as they are written.
Timed: TypeAlias = tuple[int, bytes]

_MAGIC: Final = 2
# The client's own estimate of what a record costs beside its content: a batch's header, and numbers.
_OVERHEAD_BYTES: Final = 61 + 21
_KEYS_REMEMBERED: Final = 65_536
_NAMES_REMEMBERED: Final = 1024


class SentBatch:
    """Records of one partition that are sent together, by the places of their events.

    To the client it is the list of the batch's futures, of which it moves each where it has to split
    a batch that the broker finds too large.
    """

    def __init__(self, places: Sequence[Coordinates], result: Any) -> None:  # noqa: ANN401 - has no types
        """Keep whose records these are, and the client's future of the batch."""
        self.places = places
        self._result = result
        self._moved: dict[int, tuple[Any, int]] = {}

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.places)

    def __getitem__(self, index: int) -> _SentRecord:
        """Return a record as the client moves it."""
        return _SentRecord(self, index)

    def move(self, index: int, result: Any, position: int) -> None:  # noqa: ANN401 - has no types
        """Take note that a record went to another batch, and to which position there."""
        self._moved[index] = (result, position)

    @property
    def is_done(self) -> bool:
        """Return whether each record is acknowledged or has failed."""
        return all(result.is_done for result, _ in self._results())

    def wait(self, seconds: float) -> None:
        """Wait until a result that is still open is there, for some seconds at most."""
        for result, _ in self._results():
            if not result.is_done:
                result.wait(seconds)
                return

    def failures(self) -> dict[Coordinates, Exception]:
        """Return the errors of those records that have failed, once it is done."""
        if all(result.value[-1] is None for result, _ in self._results()):
            return {}
        return {
            place: result.value[-1](position)
            for place, (result, position) in zip(
                self.places, self._results_of_records(), strict=True
            )
            if result.value[-1] is not None
        }

    def _results(self) -> Iterator[tuple[Any, int]]:
        return self._results_of_records() if self._moved else iter([(self._result, 0)])

    def _results_of_records(self) -> Iterator[tuple[Any, int]]:
        for index in range(len(self.places)):
            yield self._moved.get(index, (self._result, index))


def failures(sent: Iterable[SentBatch]) -> dict[Coordinates, Exception]:
    """Return the errors of those records that have failed in batches that are done."""
    return {place: error for batch in sent for place, error in batch.failures().items()}


class _SentRecord:
    """What the client needs of a record's future when it splits a batch."""

    def __init__(self, batch: SentBatch, index: int) -> None:
        self._batch = batch
        self._index = index

    def rebind(self, result: Any, position: int) -> None:  # noqa: ANN401 - has no types
        self._batch.move(self._index, result, position)


def send(
    producer: Any,  # noqa: ANN401 - has no types
    messages: Mapping[Coordinates, ProducerRecord],
    sent: list[SentBatch],
    check: Callable[[], None],
) -> list[Coordinates]:
    """Hand messages to a producer, those of a partition in their order; adds the batches to `sent`.

    Calls `check` before each wait for a topic's metadata. Returns the places of messages that are
    larger than the client may send.

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
    for place, message in messages.items():
        topic = message.topic
        if topic not in partition_of:
            check()
            partition_of[topic] = _partitioner(producer, topic)
        content = content_of(message)
        if len(content) > largest:
            too_large.append(place)
            continue
        places, records = parts[partition_of[topic](message.key)]
        places.append(place)
        records.append((now if message.timestamp is None else message.timestamp, content))
    for partition, (places, records) in parts.items():
        _send_to(producer, partition, places, records, sent)
    return too_large


def _partitioner(producer: Any, topic: str) -> Callable[[bytes | None], TopicPartition]:  # noqa: ANN401 - as above
    """Return how Kafka's clients choose partitions: by the key; those without one stay together."""
    numbers = sorted(producer.partitions_for(topic))
    partitions = [TopicPartition(topic, number) for number in numbers]
    available = producer._metadata.available_partitions_for_topic(topic)  # noqa: SLF001 - not public
    without_key = TopicPartition(topic, random.choice(sorted(available or numbers)))  # noqa: S311 - no secret

    def partition_of(key: bytes | None) -> TopicPartition:
        if key is None:
            return without_key
        return partitions[_hash(key) % len(partitions)]

    return partition_of


@lru_cache(maxsize=_KEYS_REMEMBERED)
def _hash(key: bytes) -> int:
    # The client's is plain Python, a byte at a time.
    return int(murmur2(key)) & 0x7FFFFFFF


def _send_to(
    producer: Any,  # noqa: ANN401 - as above
    partition: TopicPartition,
    places: Sequence[Coordinates],
    records: Sequence[Timed],
    sent: list[SentBatch],
) -> None:
    """Put a partition's records into batches, and those where the client's thread takes them."""
    accumulator, manager = producer._accumulator, producer._transaction_manager  # noqa: SLF001 - as above
    if manager.is_transactional():
        manager.maybe_add_partition_to_transaction(partition)
    sizes = accumulator.config["compression_attrs"], accumulator.config["batch_size"]
    begin = 0
    while begin < len(records):
        builder = MemoryRecordsBuilder(_MAGIC, *sizes)
        end = begin + fill(builder, islice(records, begin, None))
        batch = ProducerBatch(partition, builder)
        batch._record_futures = SentBatch(places[begin:end], batch.produce_future)  # noqa: SLF001 - as above
        with accumulator._tp_lock(partition):  # noqa: SLF001 - as above
            accumulator._batches[partition].append(batch)  # noqa: SLF001 - as above
            accumulator._incomplete.add(batch)  # noqa: SLF001 - as above
        sent.append(batch._record_futures)  # noqa: SLF001 - as above
        begin = end
    producer._sender.wakeup()  # noqa: SLF001 - as above


def fill(builder: MemoryRecordsBuilder, records: Iterable[Timed]) -> int:
    """Write records into a batch that is empty, and return how many: one, or all that fit."""
    inner = builder._builder  # noqa: SLF001 - as above
    room = inner._batch_size - len(inner._buffer)  # noqa: SLF001 - as above
    written: list[bytes] = []
    first = latest = 0
    for timestamp, content in records:
        if not written:
            first = latest = timestamp
        # Attributes, of which there are none, time and position.
        record = b"\0" + _VARINT[timestamp - first] + _VARINT[len(written)] + content
        record = _VARINT[len(record)] + record
        room -= len(record)
        if room < 0 and written:
            break
        written.append(record)
        latest = max(latest, timestamp)
    inner._buffer += b"".join(written)  # noqa: SLF001 - as above
    inner._first_timestamp, inner._max_timestamp = first, latest  # noqa: SLF001 - as above
    inner._num_records = builder._next_offset = len(written)  # noqa: SLF001 - as above
    inner._last_offset = len(written) - 1  # noqa: SLF001 - as above
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
    """Numbers as Protocol Buffers' sint64, of which it keeps those that it was made with."""

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


# -1 is the length of what is null.
_VARINT: Final = _Varints(range(-1, 8192))
