"""Records that are there and do not come are told from there being none: a client can get stuck."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from tests.classifications import classified
from tests.kafka.broker import PATIENCE, wait_until
from tests.kafka.stage import place_of
from worker.errors import WorkerError
from worker.events.decoding import Fields, json_decoder
from worker.events.encoding import LabelEncoder
from worker.events.records import Event, LabelledEvent
from worker.logs.logger import configure_logs
from worker.settings.schema import KafkaSettings
from worker.transports.kafka.records import ProducerRecordEncoder
from worker.transports.kafka.stalls import StallDetector
from worker.transports.kafka.transport import KafkaTransport, TransportLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.kafka.stage import Stage

GUARANTEES = pytest.mark.parametrize("guarantee", ["at-least-once", "exactly-once"])


class Loop:
    """A transport, and the loop that labels what it hands out."""

    def __init__(self, stage: Stage, guarantee: str) -> None:
        settings = KafkaSettings.model_validate(
            {
                "brokers": stage.kafka.bootstrap,
                "input_topics": stage.input,
                "output_topic": stage.output,
                "dead_letter_topic": stage.dead,
                "group": stage.group,
                "guarantee": guarantee,
            }
        )
        labels = LabelEncoder("test", "0")
        encoder = ProducerRecordEncoder(
            labels, stage.output, stage.dead, stage.group, max_bytes=2**20
        )
        limits = TransportLimits(max_bytes=2**20, stuck_seconds=60)
        self.transport = KafkaTransport(settings, json_decoder(Fields()), encoder, limits)
        self._chunks = self.transport.chunks()

    def run_until(self, condition: Callable[[], bool], what: str) -> None:
        def done() -> bool:
            chunk = next(self._chunks)
            result = classified({})
            outcomes = [
                LabelledEvent(item, result) if isinstance(item, Event) else item
                for item in chunk.items
            ]
            self.transport.complete(chunk, outcomes)
            return condition()

        wait_until(done, what)

    def run_idle(self) -> None:
        """Run while the transport looks after its partitions a few times, and sees no lag."""
        before, lag = self.transport._looked_after, {}

        def looked() -> bool:
            if self.transport._looked_after != before:
                lag[self.transport._looked_after] = sum(self.transport.report.lag.values())
            return len(lag) == 3

        self.run_until(looked, "the transport to look after its partitions")
        assert [*lag.values()] == [0, 0, 0]


@pytest.fixture
def loop(stage: Stage, guarantee: str) -> Iterator[Loop]:
    loop = Loop(stage, guarantee)
    yield loop
    loop.transport.close(1)


def ends(stage: Stage) -> dict[int, int]:
    """Return where the input ends, markers of transactions counted."""
    with closing(KafkaConsumer(**stage.kafka.settings)) as consumer:
        partitions = [TopicPartition(stage.input, number) for number in range(stage.partitions)]
        return {p.partition: end for p, end in consumer.end_offsets(partitions).items()}


def transact(stage: Stage, texts: list[str], *, commit: bool) -> None:
    """Produce events in a transaction, partition by partition in turn."""
    producer: Any = KafkaProducer(**stage.kafka.settings, transactional_id=next(stage.names))
    try:
        producer.init_transactions()
        producer.begin_transaction()
        for number, text in enumerate(texts):
            value = json.dumps({"text": text}).encode()
            producer.send(stage.input, value, partition=number % stage.partitions)
        producer.flush(timeout=PATIENCE)
        if commit:
            producer.commit_transaction()
        else:
            producer.abort_transaction()
    finally:
        producer.close(timeout=PATIENCE)


@pytest.mark.parametrize("guarantee", ["at-least-once"])
def test_records_that_do_not_come_end_the_worker_with_a_sentence_and_its_stacks(
    stage: Stage, loop: Loop, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logs("info", "json")
    stage.produce(["gg", "wp"])
    loop.run_until(lambda: len(stage.labels()) == 2, "two labels")
    consumer = loop.transport._member.consumer
    # As a client that has forgotten to fetch: it stays in the group, and nothing comes.
    consumer.pause(*consumer.assignment())
    loop.transport._stalls = StallDetector(1)
    stage.produce(["a secret", "another"])
    problem = r"none has come for 1 seconds: 2; start the worker again"
    with pytest.raises(WorkerError, match=problem):
        loop.run_until(lambda: False, "the transport to see that it is stuck")
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    stacks = {line["thread"]: line["stack"] for line in lines if line["event"] == "stack"}
    assert any(frame.endswith(" look") for frame in stacks["MainThread"])
    assert "secret" not in json.dumps(lines)
    assert len(stage.labels()) == 2


@pytest.mark.slow
@GUARANTEES
def test_there_being_no_records_is_not_being_stuck(stage: Stage, loop: Loop) -> None:
    loop.run_until(lambda: loop.transport.report.problem is None, "the worker to be in its group")
    loop.run_idle()
    stage.produce(["gg", "wp"])
    loop.run_until(lambda: len(stage.labels()) == 2, "two labels")
    loop.run_idle()


@GUARANTEES
def test_a_topic_that_ends_in_markers_of_transactions_is_read_to_its_end(
    stage: Stage, loop: Loop
) -> None:
    transact(stage, ["gg", "wp", "lol", "no"], commit=True)
    transact(stage, ["never", "said"], commit=False)
    loop.run_until(lambda: stage.kafka.committed(stage.group, stage.input) == ends(stage), "all")
    loop.run_idle()
    # Four records and their marker, a record that was taken back and its marker.
    assert ends(stage) == {0: 5, 1: 5}
    assert sorted(map(place_of, stage.labels())) == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.slow
@GUARANTEES
def test_records_of_an_open_transaction_are_not_there_yet(stage: Stage, loop: Loop) -> None:
    producer: Any = KafkaProducer(**stage.kafka.settings, transactional_id=next(stage.names))
    with closing(producer):
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(stage.input, b'{"text": "gg"}', partition=0).get(timeout=PATIENCE)
        loop.run_until(
            lambda: loop.transport.report.problem is None, "the worker to be in its group"
        )
        loop.run_idle()
        producer.commit_transaction()
        loop.run_until(lambda: len(stage.labels()) == 1, "the label")


@pytest.mark.slow
@GUARANTEES
def test_of_a_topic_of_which_all_was_taken_back_nothing_is_waited_for(
    stage: Stage, loop: Loop
) -> None:
    transact(stage, ["never", "said"], commit=False)
    loop.run_until(lambda: loop.transport.report.problem is None, "the worker to be in its group")
    loop.run_idle()
    assert ends(stage) == {0: 2, 1: 2}
