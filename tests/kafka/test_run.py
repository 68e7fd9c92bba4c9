"""`worker run`: what comes out for what goes in, with either guarantee."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest

from tests.kafka.broker import wait_until
from tests.kafka.health import LISTEN, metrics
from tests.kafka.stage import header, place_of
from worker.cli.entry import main
from worker.inference.classifier import Classifier

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kafka.stage import Stage

GUARANTEES = pytest.mark.parametrize("guarantee", ["at-least-once", "exactly-once"])
TEXTS = ["gg wp", "why would you do that", "lol", "so sad to see you go", "wtf😡"] * 40


@GUARANTEES
def test_every_event_is_labelled_once_and_carries_what_its_event_carried(
    stage: Stage, guarantee: str
) -> None:
    value = json.dumps({"id": "m-1", "text": "gg wp", "room": 7}).encode()
    headers = [("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")]
    stage.kafka.produce(stage.input, [(b"room-7", value, headers, 1, 1700000000000)])
    worker = stage.worker(KAFKA__GUARANTEE=guarantee, INPUT__KEEP='["room"]')
    stage.wait_until_done()
    assert worker.stop() == 0
    (label,) = stage.labels()
    assert (label.key, label.timestamp) == (b"room-7", 1700000000000)
    assert label.headers[0] == headers[0]
    assert header(label, "worker-topic") == stage.input
    assert place_of(label) == (1, 0)
    content = json.loads(label.value)
    (expected,) = Classifier.load().classify(["gg wp"])
    assert content["id"] == "m-1"
    assert content["room"] == 7
    assert content["labels"] == list(expected.labels)
    assert content["digest"] == header(label, "worker-model")
    assert "text" not in content


@GUARANTEES
def test_an_event_without_id_is_named_by_its_place(stage: Stage, guarantee: str) -> None:
    stage.produce(TEXTS)
    worker = stage.worker(KAFKA__GUARANTEE=guarantee)
    stage.wait_until_done()
    assert worker.stop() == 0
    labels = stage.labels()
    assert sorted(map(place_of, labels)) == [(p, n) for p in (0, 1) for n in range(100)]
    assert {json.loads(label.value)["id"] for label in labels} == {
        f"{stage.input}-{p}-{n}" for p in (0, 1) for n in range(100)
    }


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_compressed_topics_are_read_and_written(stage: Stage, codec: str) -> None:
    stage.produce(TEXTS, compression_type=codec)
    worker = stage.worker(KAFKA__COMPRESSION=codec)
    stage.wait_until_done()
    assert worker.stop() == 0
    assert len(stage.labels()) == len(TEXTS)


def test_raw_text_is_a_format_too(stage: Stage) -> None:
    stage.produce_values([b"gg wp", b"\xff"])
    worker = stage.worker(KAFKA__FORMAT="text", INCLUDE_TEXT="true")
    stage.wait_until_done()
    assert worker.stop() == 0
    assert [json.loads(label.value)["text"] for label in stage.labels()] == ["gg wp"]
    assert [header(letter, "worker-kind") for letter in stage.dead_letters()] == ["not-utf8"]


def test_tombstones_and_events_to_be_skipped_are_passed_over(stage: Stage) -> None:
    values = [None, b'{"text": "beep", "bot": true}', b'{"text": "gg", "bot": false}']
    stage.produce_values(values)
    worker = stage.worker(INPUT__SKIP_FIELD="bot")
    stage.wait_until_done()
    assert worker.stop() == 0
    assert [place_of(label) for label in stage.labels()] == [(0, 1)]
    assert stage.dead_letters() == []


def test_several_topics_can_be_read(stage: Stage) -> None:
    other = next(stage.names)
    stage.kafka.create_topic(other)
    stage.kafka.produce(other, [(None, b'{"text": "wp"}', [], None, None)])
    stage.produce(["gg"])
    stage.worker(KAFKA__INPUT_TOPICS=f"{stage.input},{other}")
    stage.wait_until_done()
    wait_until(lambda: len(stage.labels()) == 2, "two labels")
    assert {header(label, "worker-topic") for label in stage.labels()} == {stage.input, other}


def test_keys_and_headers_can_be_left_behind(stage: Stage) -> None:
    record = (b"user-1", b'{"text": "gg"}', [("user", b"1")], 0, None)
    stage.kafka.produce(stage.input, [record])
    stage.worker(**dict.fromkeys(["KAFKA__PASS_KEY", "KAFKA__PASS_HEADERS"], "false"))
    stage.wait_until_done()
    (label,) = stage.labels()
    assert label.key is None
    assert all(name.startswith("worker-") for name, _ in label.headers)


@GUARANTEES
def test_what_cannot_be_read_becomes_a_dead_letter_with_its_original(
    stage: Stage, guarantee: str
) -> None:
    values = [b"{", b'{"id": 1}', b"\xff", b'{"text": "%s"}' % (b"x" * 3000), b'{"text": "gg"}']
    headers = [("kind", b"a")]
    stage.kafka.produce(
        stage.input, [(b"key", value, headers, 0, 1700000000000) for value in values]
    )
    stage.worker(KAFKA__GUARANTEE=guarantee, INPUT__MAX_BYTES="2000")
    stage.wait_until_done()
    letters = stage.dead_letters()
    assert [letter.value for letter in letters] == values[:4]
    kinds = ["not-json", "no-text", "not-utf8", "too-large"]
    assert [header(letter, "worker-kind") for letter in letters] == kinds
    for letter, offset in zip(letters, range(4), strict=True):
        assert letter.key == b"key"
        assert letter.headers[0] == headers[0]
        assert header(letter, "worker-topic") == stage.input
        assert place_of(letter) == (0, offset)
        assert header(letter, "worker-timestamp") == "1700000000000"
        assert letter.timestamp > 1700000000000
        assert header(letter, "worker-reason")
    assert [place_of(label) for label in stage.labels()] == [(0, 4)]


@pytest.mark.slow
@GUARANTEES
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_when_asked_to_stop_it_commits_what_it_published(
    stage: Stage, guarantee: str, number: signal.Signals
) -> None:
    worker = stage.worker(KAFKA__GUARANTEE=guarantee, KAFKA__CHUNK_SECONDS="0.01")
    worker.wait_for("group begins")
    stage.produce(TEXTS)
    worker.process.send_signal(number)
    assert worker.wait() == 0
    committed = stage.kafka.committed(stage.group, stage.input)
    assert len(stage.labels()) == sum(committed.values())
    stage.worker(KAFKA__GUARANTEE=guarantee)
    stage.wait_until_done()
    assert sorted(map(place_of, stage.labels())) == [(p, n) for p in (0, 1) for n in range(100)]


def test_when_asked_to_stop_between_transactions_it_does_not_wait_for_the_next(
    stage: Stage,
) -> None:
    worker = stage.worker(
        KAFKA__GUARANTEE="exactly-once", KAFKA__COMMIT_INTERVAL_SECONDS="10", RUN__STOP_SECONDS="1"
    )
    stage.produce(TEXTS)
    wait_until(lambda: len(stage.labels()) > 0, "the first transaction")
    assert worker.stop() == 0
    # Who is ended by the watchdog does not get so far.
    worker.wait_for("stopped", uncommitted=False)


@GUARANTEES
def test_it_counts_what_it_does_and_the_time_of_each_step(stage: Stage, guarantee: str) -> None:
    stage.produce(TEXTS)
    worker = stage.worker(KAFKA__GUARANTEE=guarantee, **LISTEN)
    wait_until(
        lambda: 'worker_messages_total{process="0"} 200.0' in metrics(worker), "the last count"
    )
    numbers = dict(line.rsplit(" ", 1) for line in metrics(worker) if not line.startswith("#"))
    for step in ("poll", "decode", "tokenize", "infer", "publish", "commit"):
        assert float(numbers[f'worker_step_seconds_total{{process="0",step="{step}"}}']) > 0
    assert numbers['worker_latency_seconds_count{process="0"}'] == "200.0"
    for partition in (0, 1):
        lag = f'worker_lag_records{{partition="{partition}",process="0",topic="{stage.input}"}}'
        assert numbers[lag] == "0.0"


def test_the_streams_labels_are_those_of_a_replay_byte_for_byte(
    stage: Stage, tmp_path: Path
) -> None:
    events = [json.dumps({"id": n, "text": text}) for n, text in enumerate(TEXTS)]
    stage.produce_values([event.encode() for event in events])
    stage.worker()
    stage.wait_until_done()
    (tmp_path / "events.jsonl").write_text("\n".join(events), encoding="utf-8")
    assert (
        main(["replay", str(tmp_path / "events.jsonl"), "-o", str(tmp_path / "labels.jsonl")]) == 0
    )
    replayed = (tmp_path / "labels.jsonl").read_bytes().splitlines()
    assert sorted(label.value for label in stage.labels()) == sorted(replayed)
