"""What goes wrong around `worker run`, and that nothing is lost by it; all on a real broker."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.conftest import POISON, sign
from tests.kafka.broker import wait_until
from tests.kafka.deadly import KILLER
from tests.kafka.health import LISTEN, wait_until_ready
from tests.kafka.proxy import Api, BlackHole, Cut, Fault, Moment, Proxy
from tests.kafka.stage import Stage, header, place_of
from worker.inference.artifact import load_artifact
from worker.inference.tokens import TextTokenizer
from worker.transports.kafka.marks import DEATHS_ALONE, DEATHS_BEFORE_CARE

if TYPE_CHECKING:
    from pathlib import Path

    from kafka.consumer.fetcher import ConsumerRecord

    from tests.kafka.broker import Node

GUARANTEES = pytest.mark.parametrize("guarantee", ["at-least-once", "exactly-once"])
TEXTS = [f"message {number}" for number in range(200)]
PLACES = [(partition, offset) for partition in (0, 1) for offset in range(100)]


def places(records: list[ConsumerRecord]) -> list[tuple[int, int]]:
    return sorted(map(place_of, records))


def repeats(records: list[ConsumerRecord]) -> int:
    return sum(count - 1 for count in Counter(map(place_of, records)).values())


# Messages that the model cannot take.


@GUARANTEES
def test_of_a_chunk_only_the_message_that_the_engine_fails_on_is_dead_lettered(
    stage: Stage, guarantee: str, poisoned_model: Path
) -> None:
    stage.produce([*TEXTS[:120], f"a {POISON} here", *TEXTS[121:]])
    stage.worker(KAFKA__GUARANTEE=guarantee, MODEL=str(poisoned_model))
    stage.wait_until_done()
    (letter,) = stage.dead_letters()
    assert (place_of(letter), header(letter, "worker-kind")) == ((0, 60), "engine")
    assert places(stage.labels()) == [place for place in PLACES if place != (0, 60)]


def test_a_model_that_fails_on_most_messages_ends_the_worker_and_dead_letters_none(
    stage: Stage, poisoned_model: Path
) -> None:
    stage.produce([f"{POISON} {number}" for number in range(50)])
    # Again and again, as where something starts it anew: it does not take the messages for deadly.
    for _ in range(DEATHS_BEFORE_CARE + DEATHS_ALONE):
        worker = stage.worker(MODEL=str(poisoned_model))
        assert worker.wait() == 1
        assert "the model fails on" in worker.output
    assert stage.dead_letters() == stage.labels() == []


def test_a_model_that_fails_on_a_known_good_text_ends_the_worker_before_it_joins_the_group(
    stage: Stage, model_copy: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    (tokens,) = TextTokenizer(load_artifact(model_copy)).encode(["x"])
    graph = onnx.load(model_copy / "model.onnx", load_external_data=False).graph
    (scales,) = (value for value in graph.initializer if value.name == "word_scales")
    (offset,) = (int(entry.value) for entry in scales.external_data if entry.key == "offset")
    with (model_copy / "weights.bin").open("r+b") as file:
        file.seek(offset + 4 * tokens.ids[0])
        file.write(np.float32("nan").tobytes())
    sign(model_copy, "weights.bin")
    stage.produce(TEXTS)
    worker = stage.worker(MODEL=str(model_copy))
    assert worker.wait() == 1
    assert "fails on a known good text" in worker.output
    assert "group begins" not in worker.output
    assert stage.dead_letters() == stage.labels() == []


@pytest.mark.slow
@GUARANTEES
def test_a_message_that_kills_its_process_is_found_and_dead_lettered(
    stage: Stage, guarantee: str
) -> None:
    stage.produce([*TEXTS[:30], KILLER, *TEXTS[31:]])
    deaths = 0
    worker = stage.worker(module="tests.kafka.deadly", KAFKA__GUARANTEE=guarantee)
    while not stage.dead_letters():
        if not worker.running:
            deaths += 1
            worker = stage.worker(module="tests.kafka.deadly", KAFKA__GUARANTEE=guarantee)
        assert deaths < 8
        time.sleep(0.05)
    stage.wait_until_done()
    (letter,) = stage.dead_letters()
    assert (place_of(letter), header(letter, "worker-kind")) == ((0, 15), "deadly")
    assert set(places(stage.labels())) == {place for place in PLACES if place != (0, 15)}
    assert deaths == DEATHS_BEFORE_CARE + DEATHS_ALONE
    if guarantee == "exactly-once":
        assert repeats(stage.labels()) == 0


# Outputs that the brokers do not take.


@GUARANTEES
def test_a_label_that_the_broker_refuses_becomes_a_dead_letter(
    stage: Stage, guarantee: str
) -> None:
    small = next(stage.names)
    stage.kafka.create_topic(small, max_message_bytes="2000")
    stage.produce([*TEXTS[:50], "x" * 5000, *TEXTS[51:]])
    stage.output = small
    worker = stage.worker(
        KAFKA__GUARANTEE=guarantee, KAFKA__OUTPUT_TOPIC=small, INCLUDE_TEXT="true"
    )
    stage.wait_until_done()
    (letter,) = stage.dead_letters()
    assert (place_of(letter), header(letter, "worker-kind")) == ((0, 25), "refused")
    assert len(letter.value) > 5000
    assert places(stage.labels()) == [place for place in PLACES if place != (0, 25)]
    assert worker.stop() == 0


@pytest.mark.slow
@GUARANTEES
def test_the_rest_of_a_large_chunk_with_a_label_that_is_refused_goes_together(
    proxied: tuple[Stage, Proxy], guarantee: str
) -> None:
    stage, proxy = proxied
    # A batch of labels is smaller, that label is larger.
    stage.output = next(stage.names)
    stage.kafka.create_topic(stage.output, max_message_bytes="150000")
    texts = ["gg"] * 2000
    texts[1000] = "x" * 200_000
    stage.produce(texts, max_request_size=2**20)
    worker = stage.worker(
        KAFKA__GUARANTEE=guarantee,
        KAFKA__OUTPUT_TOPIC=stage.output,
        KAFKA__CHUNK_SECONDS="30",
        KAFKA__REQUEST_TIMEOUT_SECONDS="10",
        INCLUDE_TEXT="true",
    )
    stage.wait_until_done()
    (letter,) = stage.dead_letters()
    assert (place_of(letter), header(letter, "worker-kind")) == ((0, 500), "refused")
    assert len(stage.labels()) == len(texts) - 1
    assert worker.stop() == 0
    assert proxy.seen[Api.PRODUCE] < len(texts) / 2


@GUARANTEES
def test_a_label_larger_than_the_client_may_send_becomes_a_dead_letter(
    stage: Stage, guarantee: str
) -> None:
    # The text comes out longer than it went in: as escapes.
    stage.produce([*TEXTS[:50], "x" * 800, *TEXTS[51:]])
    worker = stage.worker(
        KAFKA__GUARANTEE=guarantee, KAFKA__MAX_MESSAGE_BYTES="1100", INCLUDE_TEXT="true"
    )
    stage.wait_until_done()
    (letter,) = stage.dead_letters()
    assert (place_of(letter), header(letter, "worker-kind")) == ((0, 25), "refused")
    assert places(stage.labels()) == [place for place in PLACES if place != (0, 25)]
    assert worker.stop() == 0


@GUARANTEES
def test_a_timestamp_that_the_broker_refuses_goes_into_a_header(
    stage: Stage, guarantee: str
) -> None:
    early, late = next(stage.names), 4102444800000
    stage.kafka.create_topic(early, message_timestamp_after_max_ms=str(2**62))
    values = [b'{"text": "%d"}' % number for number in range(20)]
    stamps = [late if number == 7 else 1700000000000 for number in range(20)]
    stage.kafka.produce(
        early, [(None, value, [], 0, stamp) for value, stamp in zip(values, stamps, strict=True)]
    )
    stage.input, stage.partitions = early, 1
    worker = stage.worker(KAFKA__GUARANTEE=guarantee, KAFKA__INPUT_TOPICS=early)
    stage.wait_until_done()
    labels = sorted(stage.labels(), key=place_of)
    assert places(labels) == [(0, offset) for offset in range(20)]
    assert header(labels[7], "worker-timestamp") == str(late)
    assert {label.timestamp for label in labels[:7] + labels[8:]} == {1700000000000}
    assert stage.dead_letters() == []
    assert worker.stop() == 0


@pytest.mark.slow
@GUARANTEES
def test_without_a_dead_letter_topic_it_waits_and_commits_nothing_past_the_record(
    stage: Stage, guarantee: str
) -> None:
    stage.dead = next(stage.names)
    stage.produce_values([b"{", *(b'{"text": "%d"}' % number for number in range(50))])
    worker = stage.worker(KAFKA__GUARANTEE=guarantee, KAFKA__DEAD_LETTER_TOPIC=stage.dead)
    worker.wait_for("waiting")
    worker.wait_for("chunk abandoned: it will be done again")
    committed = stage.kafka.committed(stage.group, stage.input)
    assert committed.get(0, 0) == 0
    stage.kafka.create_topic(stage.dead)
    stage.wait_until_done()
    assert places(stage.dead_letters()) == [(0, 0)]
    assert len(stage.labels()) == 50
    assert worker.stop() == 0


@pytest.mark.slow
@GUARANTEES
def test_workers_that_stop_while_labels_cannot_be_written_are_no_deaths(
    stage: Stage, guarantee: str
) -> None:
    stage.output = next(stage.names)
    stage.produce(TEXTS)
    # More than it takes to find a message that kills.
    for _ in range(6):
        worker = stage.worker(
            KAFKA__GUARANTEE=guarantee,
            KAFKA__OUTPUT_TOPIC=stage.output,
            KAFKA__DEADLINE_SECONDS="1",
        )
        worker.wait_for("chunk abandoned: it will be done again")
        worker.stop()
    stage.kafka.create_topic(stage.output)
    worker = stage.worker(KAFKA__GUARANTEE=guarantee, KAFKA__OUTPUT_TOPIC=stage.output)
    stage.wait_until_done()
    assert stage.dead_letters() == []
    assert places(stage.labels()) == PLACES
    assert worker.stop() == 0


@pytest.mark.slow
@GUARANTEES
def test_a_worker_that_must_stop_with_a_chunk_in_hand_leaves_it_and_says_so(
    proxied: tuple[Stage, Proxy], guarantee: str
) -> None:
    stage, proxy = proxied
    worker = stage.worker(KAFKA__GUARANTEE=guarantee, RUN__STOP_SECONDS="1")
    worker.wait_for("group begins")
    lose = Fault(api=Api.PRODUCE, moment=Moment.BEFORE_REQUEST, action=BlackHole())
    lost = proxy.arm(lose)
    stage.produce(TEXTS)
    assert lost.struck.wait(60)
    assert worker.stop() == 1
    proxy.heal()
    stage.worker(KAFKA__GUARANTEE=guarantee)
    stage.wait_until_done()
    assert sorted(set(places(stage.labels()))) == PLACES


# Brokers that are slow or away.


@pytest.mark.slow
@GUARANTEES
def test_a_worker_may_come_up_before_its_broker(
    proxied: tuple[Stage, Proxy], guarantee: str
) -> None:
    stage, proxy = proxied
    stage.produce(TEXTS)
    proxy.refuse()
    worker = stage.worker(KAFKA__GUARANTEE=guarantee)
    worker.wait_for("waiting")
    proxy.accept()
    stage.wait_until_done()
    assert places(stage.labels()) == PLACES
    assert worker.stop() == 0


@pytest.mark.slow
@GUARANTEES
@pytest.mark.parametrize("how", ["hung", "black hole", "refused", "killed"])
def test_an_outage_is_waited_out_and_costs_no_label(
    proxied: tuple[Stage, Proxy], kafka_node: Node, guarantee: str, how: str
) -> None:
    stage, proxy = proxied
    begin = {
        "hung": kafka_node.pause,
        "black hole": proxy.black_hole,
        "refused": proxy.refuse,
        "killed": kafka_node.kill,
    }
    end = {
        "hung": kafka_node.resume,
        "black hole": proxy.heal,
        "refused": proxy.accept,
        "killed": kafka_node.start,
    }
    stage.produce(TEXTS[:100])
    worker = stage.worker(KAFKA__GUARANTEE=guarantee, KAFKA__CHUNK_RECORDS="20")
    stage.wait_until_done()
    stage.produce(TEXTS[100:])
    begin[how]()
    worker.wait_for("waiting")
    assert worker.running
    end[how]()
    stage.wait_until_done()
    labels = stage.labels()
    assert sorted(set(places(labels))) == PLACES
    assert repeats(labels) <= (20 if guarantee == "at-least-once" else 0)
    assert worker.stop() == 0


@pytest.mark.slow
def test_a_worker_can_be_stopped_while_the_brokers_are_away(proxied: tuple[Stage, Proxy]) -> None:
    stage, proxy = proxied
    worker = stage.worker()
    worker.wait_for("group begins")
    proxy.black_hole()
    stage.produce(TEXTS)
    worker.wait_for("waiting")
    worker.process.terminate()
    assert worker.wait() in {0, 1}


# Answers that are lost.


@pytest.mark.slow
@pytest.mark.parametrize(
    "api", [Api.PRODUCE, Api.ADD_OFFSETS_TO_TXN, Api.TXN_OFFSET_COMMIT, Api.END_TXN]
)
@pytest.mark.parametrize("moment", list(Moment))
def test_exactly_once_stays_exact_when_a_request_or_its_answer_is_lost(
    proxied: tuple[Stage, Proxy], api: Api, moment: Moment
) -> None:
    stage, proxy = proxied
    stage.produce(TEXTS)
    fault = proxy.arm(Fault(api=api, moment=moment, action=Cut(), skip=1))
    worker = stage.worker(KAFKA__GUARANTEE="exactly-once", KAFKA__CHUNK_RECORDS="20")
    stage.wait_until_done()
    assert fault.count == 1
    assert places(stage.labels()) == PLACES
    assert worker.stop() == 0


@pytest.mark.parametrize("api", [Api.PRODUCE, Api.OFFSET_COMMIT])
@pytest.mark.parametrize("moment", list(Moment))
def test_at_least_once_repeats_nothing_when_a_request_or_its_answer_is_lost(
    proxied: tuple[Stage, Proxy], api: Api, moment: Moment
) -> None:
    stage, proxy = proxied
    stage.produce(TEXTS)
    fault = proxy.arm(Fault(api=api, moment=moment, action=Cut(), skip=2))
    worker = stage.worker(KAFKA__CHUNK_RECORDS="20")
    stage.wait_until_done()
    assert fault.count == 1
    assert places(stage.labels()) == PLACES
    assert worker.stop() == 0


@pytest.mark.slow
def test_without_any_answer_to_its_sends_a_worker_sends_nothing_twice(
    proxied: tuple[Stage, Proxy],
) -> None:
    stage, proxy = proxied
    stage.produce(TEXTS[:100])
    worker = stage.worker(KAFKA__CHUNK_RECORDS="20")
    stage.wait_until_done()
    proxy.black_hole()
    stage.produce(TEXTS[100:])
    worker.wait_for("waiting")
    time.sleep(8)
    proxy.heal()
    stage.wait_until_done()
    assert places(stage.labels()) == PLACES
    wait_until(lambda: worker.running, "the worker")


@pytest.mark.slow
def test_workers_that_share_a_transactional_id_are_reported_and_stay_exact(stage: Stage) -> None:
    shared = {
        "KAFKA__GUARANTEE": "exactly-once",
        "KAFKA__TRANSACTIONAL_ID": stage.group,
        "KAFKA__CHUNK_RECORDS": "5",
        **LISTEN,
    }
    workers = [stage.worker(**shared) for _ in range(2)]
    for worker in workers:
        wait_until_ready(worker)
    stage.produce(TEXTS)
    wait_until(
        lambda: any(
            entry["event"] == "fenced again and again" for w in workers for entry in w.events()
        ),
        "a worker that tells of it",
    )
    assert workers[0].stop() == 0
    stage.wait_until_done()
    assert places(stage.labels()) == PLACES
    assert workers[1].stop() == 0
