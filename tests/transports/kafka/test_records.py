"""Kafka's records to ours and back: nothing of an event is lost in its label or dead letter."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.consumer.fetcher import ConsumerRecord

from tests.classifications import classified
from worker.events.encoding import LabelEncoder
from worker.events.records import DeadLetter, ErrorKind, Event, LabelledEvent, TopicPlace
from worker.transports.kafka import records
from worker.transports.kafka.record_batches import Undecodable, encode_content
from worker.transports.kafka.records import (
    Omitted,
    Original,
    ProducerRecord,
    ProducerRecordEncoder,
    original_of,
    own_headers,
    record_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

ENCODER = ProducerRecordEncoder(
    LabelEncoder("model", "digest"), "labels", "dead", "group", max_bytes=10_000
)
# Names of headers, ours among them: an event may have been a label or a dead letter before.
OURS = [value for value in vars(records).values() if str(value).startswith(records.PREFIX)]
NAMES = st.text() | st.sampled_from(OURS)
VALUES = st.none() | st.binary() | st.sampled_from([b"[0]", b'["value"]', b"[0, 1, 2]"])
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=6)
BYTES = st.none() | st.binary()
KINDS = st.sampled_from(ErrorKind)
SHORT_KINDS = {ErrorKind.KEY_TOO_LARGE, ErrorKind.HEADERS_TOO_LARGE}
CARRYING_KINDS = st.sampled_from(sorted(set(ErrorKind) - SHORT_KINDS))


def consumed(**fields: Any) -> ConsumerRecord:
    """Return a record as the client hands it out."""
    place = {"topic": "chat", "partition": 3, "offset": 2**40, "timestamp": 1700000000000}
    empty: dict[str, Any] = dict.fromkeys(ConsumerRecord._fields)
    sizes = {"serialized_header_size": len(encode_content(None, b"", fields.get("headers", [])))}
    return ConsumerRecord(**(empty | place | sizes | fields))


def sent(message: ProducerRecord) -> ConsumerRecord:
    """Return what is read of a message that was sent."""
    return consumed(
        topic=message.topic, key=message.key, value=message.value, headers=message.headers
    )


def dead(
    source: ConsumerRecord, kind: ErrorKind = ErrorKind.NOT_JSON, why: str = "why"
) -> ProducerRecord:
    return ENCODER.encode(source, DeadLetter(record_of(source), kind, why))


def labelled(source: ConsumerRecord, encoder: ProducerRecordEncoder = ENCODER) -> ProducerRecord:
    event = Event(record_of(source), "1", "gg")
    return encoder.encode(source, LabelledEvent(event, classified({"joy": 0.5}, "joy")))


@given(key=BYTES, value=BYTES, headers=HEADERS, kind=CARRYING_KINDS, why=st.text())
def test_a_dead_letter_gives_its_event_back_to_the_byte(
    key: bytes | None,
    value: bytes | None,
    headers: list[tuple[str, bytes | None]],
    kind: ErrorKind,
    why: str,
) -> None:
    source = consumed(key=key, value=value, headers=headers)
    assert original_of(sent(dead(source, kind, why))) == Original("chat", value, key, headers)


@given(key=BYTES, value=BYTES, headers=HEADERS, why=st.text())
def test_a_dead_letter_of_what_is_too_large_says_what_its_event_had(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes | None]], why: str
) -> None:
    source = consumed(key=key, value=value, headers=headers)
    for letter in (dead(source, kind, why) for kind in SHORT_KINDS):
        assert (letter.value, letter.key) == (b"", None)
        assert all(name in OURS for name, _ in letter.headers)
        original = original_of(sent(letter))
        assert original.omitted == Omitted(
            value=None if value is None else len(value),
            key=None if key is None else len(key),
            headers=source.serialized_header_size,
            sha256=None if value is None else hashlib.sha256(value).hexdigest(),
        )
        assert original.topic == "chat"


def test_what_the_brokers_refuse_is_replaced_by_less_until_nothing_is_left() -> None:
    source = consumed(key=b"k", value=b"{}", headers=[("a", b"1")])
    letter = ENCODER.replacement(source, labelled(source), too_large=False)
    assert letter is not None
    assert own_headers(letter.headers)[records.KIND] == ErrorKind.REFUSED
    assert letter.value == b"{}"
    short = ENCODER.replacement(source, letter, too_large=False)
    assert short is not None
    assert original_of(sent(short)).omitted is not None
    assert ENCODER.replacement(source, short, too_large=False) is None


@pytest.mark.parametrize("outcome", [dead, labelled])
def test_a_record_larger_than_may_be_sent_is_none_of_those_that_are_encoded(
    outcome: Callable[[ConsumerRecord], ProducerRecord],
) -> None:
    for size in range(9_000, 11_000, 100):
        message = outcome(consumed(value=bytes(size), headers=[("a", bytes(size // 2))]))
        assert len(message.content()) <= ENCODER.max_bytes


def test_what_a_topic_does_not_take_is_not_encoded_for_it_again() -> None:
    encoder = replace(ENCODER, _largest={})
    source, smaller = (consumed(value=bytes(size), headers=[]) for size in (5000, 4000))
    letter = dead(source)
    assert (
        encoder.encode(source, DeadLetter(record_of(source), ErrorKind.NOT_JSON, "why")) == letter
    )
    encoder.replacement(source, letter, too_large=True)
    short, whole = (
        original_of(
            sent(encoder.encode(each, DeadLetter(record_of(each), ErrorKind.NOT_JSON, "why")))
        )
        for each in (source, smaller)
    )
    assert short.omitted is not None
    assert whole.omitted is None


def test_the_dead_letter_of_what_cannot_be_decoded_has_its_bytes_and_where_it_ends() -> None:
    rest = Undecodable("chat", 3, 40, 50, b"batch", "its checksum is wrong")
    message = dead(rest, ErrorKind.UNDECODABLE)
    assert message.value == b"batch"
    ours = own_headers(message.headers)
    assert (ours[records.OFFSET], ours[records.LAST_OFFSET]) == ("40", "50")
    assert records.TIMESTAMP not in ours


@pytest.mark.parametrize("timestamp", [-1, -5, -(2**63)])
def test_a_time_before_all_times_is_told_in_a_header(timestamp: int) -> None:
    message = labelled(consumed(headers=[], timestamp=timestamp))
    assert message.timestamp is None
    assert message.headers[-1] == (records.TIMESTAMP, b"%d" % timestamp)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (records.NULLS, b"[" * 100_000),
        (records.NULLS, b"{}"),
        (records.NULLS, b"[[]]"),
        (records.OMITTED, b"[]"),
        (records.OMITTED, b'{"value": "x"}'),
        (records.OMITTED, b'{"value": "x", "key": 1, "headers": 1, "sha256": "a"}'),
    ],
)
def test_headers_that_somebody_else_has_written_are_an_error_that_is_expected(
    name: str, value: bytes
) -> None:
    letter = dead(consumed(value=b"{", headers=[]))
    with pytest.raises((ValueError, TypeError)):
        original_of(sent(letter._replace(headers=[*letter.headers, (name, value)])))


@given(key=BYTES, value=BYTES, headers=HEADERS)
def test_a_dead_letter_of_a_dead_letter_gives_both_back(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes | None]]
) -> None:
    first = sent(dead(consumed(key=key, value=value, headers=headers)))
    second = original_of(sent(dead(first)))
    assert second == Original("dead", first.value, key, first.headers)
    again = consumed(key=second.key, value=second.value, headers=second.headers)
    assert original_of(again) == Original("chat", value, key, headers)


@given(headers=HEADERS, kind=KINDS, why=st.text())
def test_what_a_dead_letter_says_of_itself_is_not_what_its_event_had_in_its_headers(
    headers: list[tuple[str, bytes | None]], kind: ErrorKind, why: str
) -> None:
    message = dead(consumed(headers=headers, value=b"{"), kind, why)
    ours = own_headers(message.headers)
    place = (ours[records.TOPIC], ours[records.PARTITION], ours[records.OFFSET])
    assert place == ("chat", "3", str(2**40))
    assert (ours[records.KIND], ours[records.REASON]) == (kind, why)
    assert ours[records.TIMESTAMP] == "1700000000000"


@given(key=BYTES, value=BYTES, headers=HEADERS)
def test_what_is_sent_is_what_the_client_can_send(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes | None]]
) -> None:
    source = consumed(key=key, value=value, headers=headers)
    for message in (dead(source), labelled(source)):
        assert isinstance(message.value, bytes)
        assert message.content()


def test_a_dead_letter_without_nulls_says_nothing_of_them() -> None:
    source = consumed(key=None, value=b"", headers=[("a", b"")])
    assert records.NULLS not in own_headers(dead(source).headers)


def test_a_dead_letter_has_the_time_of_sending_and_tells_that_of_its_event() -> None:
    assert dead(consumed(headers=[])).timestamp is None
    assert labelled(consumed(headers=[])).timestamp == 1700000000000


@given(headers=HEADERS)
def test_a_label_carries_the_headers_of_its_event_and_then_ours(
    headers: list[tuple[str, bytes | None]],
) -> None:
    message = labelled(consumed(key=b"key", value=b"{}", headers=headers))
    assert message.topic == "labels"
    assert message.key == b"key"
    passed = [header for header in headers if not header[0].startswith(records.PREFIX)]
    assert message.headers[: len(passed)] == passed
    assert dict(message.headers[len(passed) :]) == {
        records.TOPIC: b"chat",
        records.PARTITION: b"3",
        records.OFFSET: str(2**40).encode(),
        records.MODEL: b"digest",
        records.GROUP: b"group",
    }


def test_a_label_can_leave_key_and_headers_behind() -> None:
    encoder = replace(ENCODER, pass_key=False, pass_headers=False)
    message = labelled(consumed(key=b"key", headers=[("user", b"1")]), encoder)
    assert message.key is None
    assert all(name.startswith(records.PREFIX) for name, _ in message.headers)


def test_a_timestamp_that_is_refused_becomes_the_last_header() -> None:
    message = labelled(consumed(headers=[(records.TIMESTAMP, b"1")])).with_timestamp_as_header()
    assert message.timestamp is None
    assert message.headers[-1] == (records.TIMESTAMP, b"1700000000000")


@pytest.mark.parametrize("headers", [[], [("from", b"phone")], [("worker-topics", b"chat")]])
def test_what_is_no_dead_letter_is_reported(headers: list[tuple[str, bytes | None]]) -> None:
    with pytest.raises(ValueError, match="not a dead letter of this worker"):
        original_of(consumed(value=b"x", headers=headers))


def test_a_place_is_that_of_the_event() -> None:
    assert record_of(consumed(value=None)).place == TopicPlace("chat", 3, 2**40)
    assert record_of(consumed(value=None)).value == b""
