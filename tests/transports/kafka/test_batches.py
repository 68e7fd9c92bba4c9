"""Record batches written at once: the bytes that kafka-python's own builder writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.errors import MessageSizeTooLargeError
from kafka.partitioner import murmur2 as clients_murmur2
from kafka.partitioner.default import DefaultPartitioner
from kafka.producer.record_accumulator import RecordAccumulator
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder

from worker.transports.kafka.batches import SentRecordBatch, failures, fill, murmur2, send
from worker.transports.kafka.client_internals import (
    ReadingLimits,
    read_record_batches,
    room_in,
    split_with_care,
)
from worker.transports.kafka.records import ProducerRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kafka.producer.producer_batch import ProducerBatch

    from worker.transports.kafka.batches import Timed

BATCH_BYTES = 1000
CODECS = {"none": 0, "gzip": 1, "lz4": 3}
LABELS = TopicPartition("labels", 0)
KEYS = (b"a", b"b", b"c", b"d")
NO_LIMITS = ReadingLimits(batch_bytes=2**30, header_bytes=2**30)

messages = st.builds(
    ProducerRecord,
    st.just("labels"),
    st.none() | st.binary() | st.just(b"x" * 9000),
    st.none() | st.binary(),
    st.lists(st.tuples(st.text(), st.none() | st.binary()), max_size=5),
    st.integers(-1, 2**48),
)
positive = st.integers(1, 100)


def timed(sent: Sequence[ProducerRecord]) -> list[Timed]:
    return [(message.timestamp or 0, message.content()) for message in sent]


def written_by_the_client(sent: Sequence[ProducerRecord], codec: int) -> tuple[int, bytes]:
    builder = MemoryRecordsBuilder(2, codec, BATCH_BYTES)
    number = 0
    for m in sent:
        if builder.append(m.timestamp or 0, m.key, m.value, m.headers) is None:
            break
        number += 1
    return number, closed(builder)


def closed(builder: MemoryRecordsBuilder) -> bytes:
    builder.set_producer_state(7, 1, 40, is_transactional=True)
    builder.close()
    return bytes(builder.buffer())


@given(sent=st.lists(messages, min_size=1, max_size=30), codec=st.sampled_from(sorted(CODECS)))
def test_a_batch_has_the_bytes_that_the_clients_builder_writes(
    sent: list[ProducerRecord], codec: str
) -> None:
    builder = MemoryRecordsBuilder(2, CODECS[codec], BATCH_BYTES)
    number = fill(builder, timed(sent), room_in(builder))
    assert (number, closed(builder)) == written_by_the_client(sent, CODECS[codec])
    assert builder.next_offset() == number


class Producer:
    """As much of the client as holds records back: its accumulator, and no broker."""

    def __init__(self, partitions: int = 1, *, limit: int = 10**6) -> None:
        self.config = {"max_request_size": limit}
        self._numbers = set(range(partitions))
        self._metadata = self._transaction_manager = self._sender = self
        self._accumulator = RecordAccumulator(batch_size=BATCH_BYTES)
        split_with_care(self)
        self.woken = 0

    def partitions_for(self, _: str) -> set[int]:
        return self._numbers

    topics = property(lambda _: lambda: {"labels"})
    partitions_for_topic = available_partitions_for_topic = partitions_for

    def is_transactional(self) -> bool:
        return False

    def wakeup(self) -> None:
        self.woken += 1

    def waiting(self) -> dict[int, list[ProducerBatch]]:
        return {p.partition: list(batches) for p, batches in self._accumulator._batches.items()}


def sent_by(producer: Producer, *sent: ProducerRecord) -> tuple[list[SentRecordBatch], list[int]]:
    batches: list[SentRecordBatch] = []
    places = {("events", 0, number): message for number, message in enumerate(sent)}
    too_large = send(producer, places, batches, lambda: None)
    return batches, [offset for _, _, offset in too_large]


def keyed(key: bytes | None, value: bytes = b"{}") -> ProducerRecord:
    return ProducerRecord("labels", value, key, [], 0)


def records_of(batch: ProducerBatch) -> list[tuple[bytes, bytes]]:
    batch.records.close()
    return [(r.key, r.value) for part in MemoryRecords(batch.records.buffer()) for r in part]


def keys_of(batch: ProducerBatch) -> list[bytes | None]:
    batch.records.close()
    records = read_record_batches(LABELS, bytes(batch.records.buffer()), NO_LIMITS)
    return [record.key for record in records]


@given(key=st.binary(max_size=50) | st.binary(min_size=120, max_size=200))
def test_the_hash_of_a_key_is_that_of_kafkas_clients(key: bytes) -> None:
    assert murmur2(key) == clients_murmur2(key) % 2**32


@given(keys=st.lists(st.binary(), min_size=1), partitions=positive)
def test_a_key_goes_where_the_clients_own_partitioner_sends_it(
    keys: list[bytes], partitions: int
) -> None:
    producer = Producer(partitions)
    sent_by(producer, *map(keyed, keys))
    for number, batches in producer.waiting().items():
        for key in (key for batch in batches for key, _ in records_of(batch)):
            record = ("labels", key, key, b"", b"", producer)
            assert DefaultPartitioner().partition(*record) == number
    assert producer.woken


def test_a_record_that_names_its_partition_goes_there() -> None:
    producer = Producer(partitions=3)
    sent_by(producer, *(keyed(b"key")._replace(partition=number) for number in (2, 0, 2)))
    sizes = {number: len(keys_of(*batches)) for number, batches in producer.waiting().items()}
    assert sizes == {0: 1, 2: 2}


def test_without_a_key_records_go_anywhere_those_of_a_chunk_together() -> None:
    seen = set()
    for _ in range(100):
        producer = Producer(3)
        sent_by(producer, keyed(None), keyed(None))
        (partition,) = producer.waiting()
        seen.add(partition)
    assert seen == {0, 1, 2}


@given(sizes=st.lists(st.integers(0, 1500), min_size=1))
def test_what_does_not_fit_a_batch_fills_the_next_in_order(sizes: list[int]) -> None:
    producer = Producer()
    values = [b"%d" % number + size * b"-" for number, size in enumerate(sizes)]
    batches, _ = sent_by(producer, *(keyed(b"key", value) for value in values))
    waiting = producer.waiting()[0]
    assert [value for batch in waiting for _, value in records_of(batch)] == values
    assert [place for batch in batches for place in batch.sources] == [
        ("events", 0, number) for number in range(len(values))
    ]
    sizes_written = [len(batch.records.buffer()) for batch in waiting]
    counts = [len(batch.sources) for batch in batches]
    assert all(
        size <= BATCH_BYTES or count == 1 for size, count in zip(sizes_written, counts, strict=True)
    )


def test_a_message_larger_than_the_client_may_send_is_named_and_the_others_are_sent() -> None:
    producer = Producer(limit=1000)
    large = keyed(b"key", b"-" * 1000)
    batches, too_large = sent_by(producer, keyed(b"key"), large, keyed(b"key"))
    assert too_large == [1]
    assert [offset for batch in batches for _, _, offset in batch.sources] == [0, 2]


def test_each_record_has_the_outcome_of_its_batch() -> None:
    producer = Producer()
    (batch,), _ = sent_by(producer, keyed(b"a"), keyed(b"b"))
    (waiting,) = producer.waiting()[0]
    assert not batch.is_done
    waiting.complete(5, -1)
    assert batch.is_done
    assert failures([batch]) == {}


def test_one_record_of_a_batch_can_fail_alone() -> None:
    producer = Producer()
    (batch,), _ = sent_by(producer, keyed(b"a"), keyed(b"b"))
    (waiting,) = producer.waiting()[0]
    errors = [ValueError("a"), MessageSizeTooLargeError()]
    waiting.complete_exceptionally(errors[1], errors.__getitem__)
    assert failures([batch]) == {("events", 0, 0): errors[0], ("events", 0, 1): errors[1]}


@pytest.mark.parametrize("fails", [0, 1, 2])
def test_records_of_a_batch_that_was_split_and_split_again_have_outcomes_of_their_own(
    fails: int,
) -> None:
    producer = Producer()
    name = b"\xff".decode("utf-8", "surrogateescape")
    messages = [ProducerRecord("labels", b"", key, [(name, None)], 0) for key in KEYS]
    (batch,), _ = sent_by(producer, *messages)
    accumulator = producer._accumulator
    for _ in range(2):
        first = accumulator._batches[LABELS].popleft()
        first.records.close()
        accumulator.split_and_reenqueue(first)
    # Of one record, one, and two.
    parts = list(accumulator._batches[LABELS])
    assert [keys_of(part) for part in parts] == [[b"a"], [b"b"], [b"c", b"d"]]
    error = MessageSizeTooLargeError()
    for number, part in enumerate(parts):
        assert not batch.is_done
        if number == fails:
            part.complete_exceptionally(error, lambda _: error)
        else:
            part.complete(number, -1)
    batch.wait(0)
    assert batch.is_done
    places = {0: [0], 1: [1], 2: [2, 3]}[fails]
    assert failures([batch]) == {("events", 0, number): error for number in places}


def test_waiting_ends_with_the_time_where_nothing_is_decided() -> None:
    (batch,), _ = sent_by(Producer(), keyed(b"a"))
    batch.wait(0.01)
    assert not batch.is_done
