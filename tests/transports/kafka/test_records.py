"""Kafka's records to ours and back: nothing of an event is lost in its label or dead letter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.consumer.fetcher import ConsumerRecord

from tests.classifications import classified
from worker.events.encoding import LabelEncoder
from worker.events.records import DeadLetter, ErrorKind, Event, LabelledEvent, TopicPlace
from worker.transports.kafka import records
from worker.transports.kafka.records import (
    Original,
    ProducerRecord,
    ProducerRecordEncoder,
    original_of,
    own_headers,
    record_of,
)

ENCODER = ProducerRecordEncoder(LabelEncoder("model", "digest"), "labels", "dead", "group")
# Names of headers, ours among them: an event may have been a label or a dead letter before.
OURS = [value for value in vars(records).values() if str(value).startswith(records.PREFIX)]
NAMES = st.text() | st.sampled_from(OURS)
VALUES = st.none() | st.binary() | st.sampled_from([b"[0]", b'["value"]', b"[0, 1, 2]"])
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=6)
BYTES = st.none() | st.binary()
KINDS = st.sampled_from(ErrorKind)


def consumed(**fields: Any) -> ConsumerRecord:
    """Return a record as the client hands it out."""
    place = {"topic": "chat", "partition": 3, "offset": 2**40, "timestamp": 1700000000000}
    empty: dict[str, Any] = dict.fromkeys(ConsumerRecord._fields)
    return ConsumerRecord(**(empty | place | fields))


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


@given(key=BYTES, value=BYTES, headers=HEADERS, kind=KINDS, why=st.text())
def test_a_dead_letter_gives_its_event_back_to_the_byte(
    key: bytes | None,
    value: bytes | None,
    headers: list[tuple[str, bytes | None]],
    kind: ErrorKind,
    why: str,
) -> None:
    source = consumed(key=key, value=value, headers=headers)
    assert original_of(sent(dead(source, kind, why))) == Original("chat", value, key, headers)


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
        assert all(isinstance(content, bytes) for _, content in message.headers)


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
    assert message.headers[: len(headers)] == [(name, value or b"") for name, value in headers]
    assert dict(message.headers[len(headers) :]) == {
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
