"""Writes a chunk's record batches at once, and hands them to kafka-python's producer.

Its `send` takes a record at a time through checks, a future and a builder that writes byte by byte:
which is most of what a message costs whose label is known (docs/performance.md). Here a partition's records
are joined, and become the content of the client's own record batches. Numbering, compression,
transactions, retries and splitting stay the client's. Tests compare the bytes with its own.
"""

from __future__ import annotations

import random
import sys
import time
from collections import defaultdict
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from kafka import TopicPartition

from worker.transports.kafka.client_internals import (
    add_to_transaction,
    append_batch,
    errors_of,
    partitions_with_leader,
    producer_batch,
    record_batch,
    room_in,
    wake,
    write_records,
)
from worker.transports.kafka.record_batches import VARINT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from kafka import KafkaProducer
    from kafka.record import MemoryRecordsBuilder

    from worker.transports.kafka.publication import Coordinates
    from worker.transports.kafka.records import ProducerRecord

# A record's timestamp in milliseconds, and its key, value and headers as the format has them.
Timed: TypeAlias = tuple[int, bytes]

# The client estimates that a record costs so much beside its content: the header of a record batch,
# and numbers of its own.
_OVERHEAD_BYTES: Final = 61 + 21
# Of the hash of keys.
_SEED: Final = 0x9747B28C
_MULTIPLIER: Final = np.uint32(0x5BD1E995)
_ALL_BITS: Final = 0xFFFF_FFFF
_NO_SIGN: Final = 0x7FFF_FFFF
_KEYS_REMEMBERED: Final = 65_536
# Longer ones are rare, unless somebody wants to fill the memory.
_KEY_REMEMBERED: Final = 128


class SentRecordBatch:
    """Records of one partition that are sent together, and the coordinates of their events.

    To the client it is the list of the futures of a record batch's records. Where the broker finds
    the batch too large, its two halves take its place.
    """

    def __init__(self, sources: Sequence[Coordinates], records: Sequence[Timed]) -> None:
        """Keep the records."""
        self.sources = sources
        self.result: Any = None
        """The client's future of the record batch, which `producer_batch` sets."""
        self._records = records
        self._halves: tuple[SentRecordBatch, ...] = ()

    @property
    def is_done(self) -> bool:
        """Return whether each record is acknowledged or has failed."""
        if self._halves:
            return all(half.is_done for half in self._halves)
        return bool(self.result.is_done)

    def wait(self, seconds: float) -> None:
        """Wait for the first result that is still open, for some seconds at most."""
        for half in self._halves:
            if not half.is_done:
                half.wait(seconds)
                return
        self.result.wait(seconds)

    def failures(self) -> dict[Coordinates, Exception]:
        """Return the errors of the records that have failed; call it once `is_done`."""
        if self._halves:
            return failures(self._halves)
        if (error_at := errors_of(self.result)) is None:
            return {}
        return {source: error_at(index) for index, source in enumerate(self.sources)}

    def split(
        self, partition: TopicPartition, new_batch: Callable[[], MemoryRecordsBuilder]
    ) -> Sequence[Any]:
        """Return two batches for the client, of which the halves are."""
        middle = -(-len(self.sources) // 2)
        halves = tuple(
            SentRecordBatch(self.sources[part], self._records[part])
            for part in (slice(middle), slice(middle, None))
        )
        batches = [half.write(partition, new_batch()) for half in halves]
        # The client's thread does this, and others see halves only when there is a result to wait for.
        self._halves = halves
        return batches

    def write(self, partition: TopicPartition, batch: MemoryRecordsBuilder) -> Any:  # noqa: ANN401 - kafka-python has no types
        """Write the records into a record batch, which they fit into, for the client to send."""
        fill(batch, self._records, sys.maxsize)
        return producer_batch(partition, batch, self)


def failures(sent: Iterable[SentRecordBatch]) -> dict[Coordinates, Exception]:
    """Return the errors of those records that have failed in record batches that are done."""
    return {source: error for batch in sent for source, error in batch.failures().items()}


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
        content = message.content()
        if len(content) > largest:
            too_large.append(source)
            continue
        partition = (
            partition_of[topic](message.key)
            if message.partition is None
            else TopicPartition(topic, message.partition)
        )
        sources, records = parts[partition]
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


def _hash(key: bytes) -> int:
    return _known_hash(key) if len(key) <= _KEY_REMEMBERED else murmur2(key) & _NO_SIGN


@lru_cache(maxsize=_KEYS_REMEMBERED)
def _known_hash(key: bytes) -> int:
    return murmur2(key) & _NO_SIGN


def murmur2(data: bytes) -> int:
    """Return the hash by which Kafka's clients choose a partition, in 32 bits without a sign.

    It is that of Java's `Utils.murmur2` (Kafka 4.1). The client's own is twenty times as slow.
    """
    words = np.frombuffer(data, "<u4", len(data) // 4) * _MULTIPLIER
    words ^= words >> 24
    words *= _MULTIPLIER
    factor = int(_MULTIPLIER)
    state = _SEED ^ len(data)
    for word in words.tolist():
        state = (state * factor & _ALL_BITS) ^ word
    rest = data[len(words) * 4 :]
    if rest:
        state = (state ^ int.from_bytes(rest, "little")) * factor & _ALL_BITS
    state = (state ^ state >> 13) * factor & _ALL_BITS
    return state ^ state >> 15


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
        end = begin + fill(batch, islice(records, begin, None), room_in(batch))
        part = SentRecordBatch(sources[begin:end], records[begin:end])
        append_batch(producer, producer_batch(partition, batch, part))
        sent.append(part)
        begin = end
    wake(producer)


def fill(batch: MemoryRecordsBuilder, records: Iterable[Timed], room: int) -> int:
    """Write records into a record batch that is empty.

    Returns how many they are: all that there is room for in bytes, at least one.
    """
    written: list[bytes] = []
    first = latest = 0
    for timestamp, content in records:
        if not written:
            first = latest = timestamp
        # The attributes, of which there are none, then timestamp and offset, both relative.
        record = b"\0" + VARINT[timestamp - first] + VARINT[len(written)] + content
        record = VARINT[len(record)] + record
        room -= len(record)
        if room < 0 and written:
            break
        written.append(record)
        latest = max(latest, timestamp)
    write_records(batch, written, first, latest)
    return len(written)
