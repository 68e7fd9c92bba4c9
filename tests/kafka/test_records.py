"""What goes through `worker run` on real topics comes back to the byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kafka.raw import RawProducer
from tests.kafka.stage import header, place_of
from tests.record_batches import Raw, record_batch
from worker.transports.kafka.records import Original, original_of

if TYPE_CHECKING:
    from tests.kafka.stage import Stage

GUARANTEES = pytest.mark.parametrize("guarantee", ["at-least-once", "exactly-once"])

Headers = list[tuple[str, bytes | None]]

# Keys and headers, those that an earlier worker has left among them.
CARRIED: list[tuple[bytes | None, Headers]] = [
    (b"key", []),
    (b"", [("a", b"")]),
    (None, [("a", b"1"), ("a", b"2"), ("ü", b"\xff")]),
    (b"\xfe", [("worker-topic", b"elsewhere"), ("worker-nulls", b'["value"]'), ("b", b"2")]),
    (None, [("a", None), ("b", b""), ("c", None)]),
    (b"key", [("worker-topic", None), ("worker-redrive", b"1"), ("worker-rounds", b"2")]),
]


def produce(stage: Stage, value: bytes) -> None:
    """Produce the value with every key and headers, nulls as they are."""
    records = [
        Raw(value, key, [(name.encode(), content) for name, content in headers])
        for key, headers in CARRIED
    ]
    with RawProducer(stage.kafka) as producer:
        producer.append(stage.input, 0, record_batch(records))
    assert [list(record.headers) for record in stage.kafka.read(stage.input)] == [
        headers for _, headers in CARRIED
    ]


@GUARANTEES
@pytest.mark.parametrize("value", [b"", b"\xff\x00", b"{" + b" " * 100_000])
def test_a_dead_letter_gives_its_event_back(stage: Stage, guarantee: str, value: bytes) -> None:
    produce(stage, value)
    stage.worker(KAFKA__GUARANTEE=guarantee, KAFKA__COMPRESSION="zstd")
    stage.wait_until_done()
    letters = sorted(stage.dead_letters(), key=place_of)
    assert [original_of(letter) for letter in letters] == [
        Original(stage.input, value, key, headers) for key, headers in CARRIED
    ]
    assert [place_of(letter) for letter in letters] == [(0, n) for n in range(len(CARRIED))]
    assert {header(letter, "worker-topic") for letter in letters} == {stage.input}


@pytest.mark.slow
@GUARANTEES
def test_a_label_carries_key_and_headers_as_they_are(stage: Stage, guarantee: str) -> None:
    produce(stage, b'{"text": "gg"}')
    stage.worker(KAFKA__GUARANTEE=guarantee)
    stage.wait_until_done()
    labels = sorted(stage.labels(), key=place_of)
    assert [place_of(label) for label in labels] == [(0, n) for n in range(len(CARRIED))]
    for label, (key, headers) in zip(labels, CARRIED, strict=True):
        assert label.key == key
        carried = [each for each in label.headers if not each[0].startswith("worker-")]
        assert carried == [each for each in headers if not each[0].startswith("worker-")]
        assert header(label, "worker-topic") == stage.input
        assert header(label, "worker-group") == stage.group
