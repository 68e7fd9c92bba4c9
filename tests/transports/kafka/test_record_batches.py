"""Records are read as brokers read them; what they would not read is an `Undecodable`."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.record import MemoryRecords

from tests.record_batches import (
    COMPRESS,
    GZIP,
    LOG_APPEND_TIME,
    ZSTD,
    Raw,
    nullable,
    record_batch,
    varint,
)
from worker.transports.kafka.client_internals import ReadingLimits, read_record_batches
from worker.transports.kafka.record_batches import Undecodable, encode_content, wrapped

if TYPE_CHECKING:
    from kafka.consumer.fetcher import ConsumerRecord

CHAT = TopicPartition("chat", 3)
LIMITS = ReadingLimits(batch_bytes=2**20, header_bytes=1000)
TIME = 1_700_000_000_000

nullables = st.none() | st.binary(max_size=50)
names = st.binary(max_size=20)
raws = st.builds(
    Raw,
    nullables,
    nullables,
    st.lists(st.tuples(names, nullables), max_size=5),
    st.integers(-(2**63), 2**63 - 1),
)
codecs = st.sampled_from(sorted(COMPRESS))


def read(*batches: bytes, limits: ReadingLimits = LIMITS) -> list[ConsumerRecord | Undecodable]:
    return read_record_batches(CHAT, b"".join(batches), limits)


def name_of(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


@given(records=st.lists(raws, min_size=1, max_size=20), codec=codecs)
def test_records_are_read_as_they_were_written(records: list[Raw], codec: int) -> None:
    found = read(record_batch(records, codec, TIME, base_offset=2**40))
    assert [(r.topic, r.partition, r.offset) for r in found] == [
        ("chat", 3, 2**40 + index) for index in range(len(records))
    ]
    for record, raw in zip(found, records, strict=True):
        assert (record.key, record.value) == (raw.key, raw.value)
        assert record.headers == [(name_of(name or b""), value) for name, value in raw.headers]
        assert isinstance(raw.timestamp, int)
        assert record.timestamp == wrapped(TIME + raw.timestamp)
        assert -(2**63) <= record.timestamp < 2**63


@given(records=st.lists(raws, min_size=1))
def test_what_is_written_has_the_names_that_were_read(records: list[Raw]) -> None:
    for record, raw in zip(read(record_batch(records)), records, strict=True):
        content = encode_content(record.key, record.value or b"", record.headers)
        headers = b"".join(nullable(name) + nullable(value) for name, value in raw.headers)
        assert (
            content
            == nullable(raw.key) + nullable(raw.value or b"") + varint(len(raw.headers)) + headers
        )


@given(
    records=st.lists(
        st.builds(
            Raw,
            nullables,
            nullables,
            st.lists(st.tuples(st.text(max_size=9).map(str.encode), nullables), max_size=5),
            st.integers(-(2**40), 2**40),
        ),
        min_size=1,
    ),
    codec=st.sampled_from([0, 1, 2, 3, 4]),
)
def test_ordinary_records_are_read_as_the_client_reads_them(records: list[Raw], codec: int) -> None:
    batch = record_batch(records, codec)
    theirs = list(MemoryRecords(batch).next_batch())
    fields = ("offset", "timestamp", "key", "value", "headers")
    assert [[getattr(r, f) for f in fields] for r in read(batch)] == [
        [getattr(r, f) for f in fields] for r in theirs
    ]


def test_the_time_of_the_broker_replaces_those_of_the_records() -> None:
    batch = record_batch([Raw(timestamp=5)], timestamp=TIME, attributes=LOG_APPEND_TIME)
    assert [record.timestamp for record in read(batch)] == [TIME]


@pytest.mark.parametrize(
    ("encoded", "number"),
    [
        # Bits beyond the number that Java keeps are dropped.
        (b"\x80" * 9 + b"\x02", 0),
        (b"\x82" + b"\x80" * 8 + b"\x02", 1),
        (b"\xff" * 9 + b"\x7f", -(2**63)),
    ],
)
def test_a_timestamp_is_the_number_that_java_reads(encoded: bytes, number: int) -> None:
    (record,) = read(record_batch([Raw(timestamp=encoded)], timestamp=TIME))
    assert record.timestamp == wrapped(TIME + number)


def test_an_offset_is_the_number_that_java_reads() -> None:
    records = [Raw(offset=b"\x80\x80\x80\x80\x10"), Raw(offset=b"\x82\x80\x80\x80\x70")]
    assert [record.offset for record in read(record_batch(records))] == [0, 1]


@pytest.mark.parametrize(
    "bad",
    [
        Raw(offset=1),
        Raw(offset=-1),
        Raw(offset=4),
        Raw(offset=b"\x80" * 5 + b"\x02"),
        Raw(timestamp=b"\x80" * 10 + b"\x02"),
        Raw(header_count=-1),
        Raw(header_count=1),
        Raw(header_count=2**31 - 1),
        Raw(headers=[(None, b"")]),
        Raw(headers=[(b"a", b"")], header_count=0),
        varint(0),
        varint(-1),
        varint(2**30),
        varint(4) + b"\0\0\4",
        varint(6) + b"\0\0\4" + varint(50) + b"\0",
    ],
)
def test_what_java_does_not_read_ends_its_batch_alone(bad: Raw | bytes) -> None:
    batches = [record_batch([Raw(b"a"), Raw(b"b"), bad, Raw(b"lost")]), record_batch([Raw(b"c")])]
    first, second, rest, third = read(*batches)
    assert [first.value, second.value, third.value] == [b"a", b"b", b"c"]
    assert isinstance(rest, Undecodable)
    assert (rest.offset, rest.last_offset, rest.value) == (2, 3, batches[0])


@pytest.mark.parametrize("codec", [GZIP, ZSTD])
def test_of_a_batch_that_expands_too_far_the_beginning_is_read(codec: int) -> None:
    batch = record_batch([Raw(b"a"), Raw(bytes(2 * LIMITS.batch_bytes)), Raw(b"b")], codec)
    first, rest = read(batch)
    assert first.value == b"a"
    assert (rest.offset, rest.last_offset) == (1, 2)
    assert f"expand to more than {LIMITS.batch_bytes} bytes" in rest.reason


def test_a_wrong_checksum_leaves_nothing_of_its_batch() -> None:
    batch = bytearray(record_batch([Raw(b"a"), Raw(b"b")]))
    batch[-1] ^= 1
    (rest,) = read(bytes(batch))
    assert (rest.offset, rest.last_offset, rest.reason) == (0, 1, "its checksum is wrong")


def test_headers_that_are_too_long_are_left_out_and_their_size_is_told() -> None:
    (short, long) = read(
        record_batch([Raw(headers=[(b"a", bytes(900))]), Raw(b"v", b"k", [(b"", b"")] * 600)])
    )
    assert short.headers == [("a", bytes(900))]
    assert (long.key, long.value, long.headers) == (b"k", b"v", [])
    assert long.serialized_header_size > 1200


@given(data=st.data(), records=st.lists(raws, min_size=1, max_size=5), codec=codecs)
def test_whatever_a_batch_holds_its_offsets_are_read_once_and_in_order(
    data: st.DataObject, records: list[Raw], codec: int
) -> None:
    content = bytearray(b"".join(record.encode(n) for n, record in enumerate(records)))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    count = data.draw(st.sampled_from([-1, 0, len(records), 2**31 - 1]))
    last = data.draw(st.sampled_from([-(2**31), -1, len(records) - 1, 2**20]))
    batches = [
        record_batch([bytes(content)], codec, count=count, last_offset=last, base_offset=100),
        record_batch([Raw(b"next")], base_offset=2**30),
    ]
    found = read(*batches)
    covered = [(r.offset, getattr(r, "last_offset", r.offset)) for r in found]
    assert all(100 <= first <= end for first, end in covered)
    assert all(end < first for (_, end), (first, _) in pairwise(covered))
    assert found[-1].value == b"next"
    assert sum(isinstance(record, Undecodable) for record in found) <= 1
