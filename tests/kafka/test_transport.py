"""Kafka as a transport holds the contract, with either guarantee, on a real broker."""

from __future__ import annotations

import json
import math
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import KafkaError

from tests.kafka.broker import PATIENCE, wait_until
from tests.kafka.proxy import Api, Cut, Delay, Fault, Hold, Moment, Proxy
from tests.transports.contract import (
    RECORDS_A_PARTITION,
    Harness,
    Name,
    TransportContract,
    name_of,
    outcomes_of,
    value_of,
)
from worker.events.decoding import Fields, json_decoder
from worker.events.encoding import LabelEncoder
from worker.settings.schema import KafkaSettings
from worker.transports.base import ChunkAbandonedError
from worker.transports.kafka.clients import new_consumer, resume
from worker.transports.kafka.deadline import Deadline
from worker.transports.kafka.records import ProducerRecord, ProducerRecordEncoder
from worker.transports.kafka.transport import KafkaTransport, State, TransportLimits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kafka.consumer.fetcher import ConsumerRecord

    from tests.kafka.broker import Kafka, Node
    from worker.events.records import DeadLetter, LabelledEvent
    from worker.transports.base import Transport
    from worker.transports.kafka.transport import KafkaChunk

Guarantee: TypeAlias = Literal["at-least-once", "exactly-once"]
GUARANTEES: list[Guarantee] = ["at-least-once", "exactly-once"]


class MisdirectedEncoder(ProducerRecordEncoder):
    """Sends the messages of one completion to a topic that does not exist."""

    missing: str | None = None

    def encode(self, source: ConsumerRecord, outcome: LabelledEvent | DeadLetter) -> ProducerRecord:
        message = super().encode(source, outcome)
        return message._replace(topic=self.missing) if self.missing else message


class DrainingTransport(KafkaTransport):
    """Ends when its partitions are drained, and hands out no empty chunk, as the contract's do."""

    def chunks(self) -> Iterator[KafkaChunk]:
        for chunk in super().chunks():
            MisdirectedEncoder.missing = None
            if chunk.items:
                yield chunk
            elif (
                not chunk.items
                and self._state is State.READY
                and self.report.joined
                and self._is_drained()
            ):
                return
            else:
                self.complete(chunk, [])

    def _is_drained(self) -> bool:
        assigned = self._member.consumer.assignment()
        committed = {p: self._member.consumer.committed(p) for p in assigned}
        return bool(assigned) and all(c == RECORDS_A_PARTITION for c in committed.values())


class KafkaHarness(Harness):
    partitions = 3

    def __init__(
        self,
        kafka: Kafka,
        names: Iterator[str],
        guarantee: Guarantee,
        bootstrap: str | None = None,
    ) -> None:
        self.kafka = kafka
        self.settings = KafkaSettings(
            brokers=(bootstrap or kafka.bootstrap,),
            input_topics=(next(names),),
            output_topic=next(names),
            dead_letter_topic=next(names),
            group=next(names),
            guarantee=guarantee,
            session_timeout_seconds=2,
            request_timeout_seconds=1,
            deadline_seconds=10,
            chunk_records=100,
        )
        self.missing = next(names)
        kafka.create_topic(self.settings.input_topics[0], partitions=self.partitions)
        kafka.create_topic(self.settings.output_topic)
        kafka.create_topic(self.settings.dead_letter_topic)
        kafka.produce(
            self.settings.input_topics[0],
            [(None, value_of(p, n), [], p, None) for p, n in self.names()],
        )
        self._consumers: list[KafkaTransport] = []
        self._threads: list[threading.Thread] = []

    def consumer(self) -> KafkaTransport:
        encoder = MisdirectedEncoder(
            LabelEncoder("test", "0"),
            self.settings.output_topic,
            self.settings.dead_letter_topic,
            self.settings.group,
            max_bytes=2**20,
        )
        limits = TransportLimits(max_bytes=2**20, stuck_seconds=60)
        consumer = DrainingTransport(self.settings, json_decoder(Fields()), encoder, limits)
        self._consumers.append(consumer)
        return consumer

    def crash(self, consumer: Transport[Any]) -> None:
        assert isinstance(consumer, KafkaTransport)
        client = consumer._member._consumer
        if client is not None:
            # It is gone without a word, and the group finds out by its silence.
            client._coordinator.maybe_leave_group = lambda **_: None
        consumer.close(1)

    def rebalance(self) -> None:
        thread = threading.Thread(target=self._come_and_go)
        thread.start()
        self._threads.append(thread)

    def fail_next_complete(self) -> None:
        MisdirectedEncoder.missing = self.missing

    def published(self) -> list[Name]:
        labels = [
            json.loads(record.value) for record in self.kafka.read(self.settings.output_topic)
        ]
        names = [label["id"] for label in labels]
        letters = self.kafka.read(self.settings.dead_letter_topic)
        names += [record.value.split(b'"')[3].decode() for record in letters]
        return [(int(name.split("/")[0]), int(name.split("/")[1])) for name in names]

    def close(self) -> None:
        for consumer in self._consumers:
            consumer.close(1)
        for thread in self._threads:
            thread.join()

    def _come_and_go(self) -> None:
        member = KafkaConsumer(
            bootstrap_servers=self.settings.brokers,
            group_id=self.settings.group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=2000,
            heartbeat_interval_ms=500,
            partition_assignment_strategy=[CooperativeStickyAssignor],
        )
        member.subscribe(list(self.settings.input_topics))
        try:
            for _ in range(100):
                member.poll(timeout_ms=100, max_records=1)
                if member.assignment():
                    break
        except KafkaError:
            pass
        finally:
            member.close()


@pytest.mark.parametrize("guarantee", GUARANTEES, scope="class")
class TestKafkaTransport(TransportContract):
    @pytest.fixture
    def harness(
        self,
        kafka: Kafka,
        topic_names: Iterator[str],
        guarantee: Guarantee,
    ) -> Iterator[KafkaHarness]:
        harness = KafkaHarness(kafka, topic_names, guarantee)
        yield harness
        harness.close()


@pytest.fixture
def proxied_harness(
    kafka: Kafka, kafka_node: Node, topic_names: Iterator[str]
) -> Iterator[tuple[KafkaHarness, Proxy]]:
    """Return a harness at least once, whose consumers come by way of a proxy."""
    bootstrap = f"127.0.0.1:{kafka_node.proxy_port}"
    with Proxy(kafka_node.proxy_port, kafka_node.proxied_port) as proxy:
        harness = KafkaHarness(kafka, topic_names, "at-least-once", bootstrap)
        yield harness, proxy
        harness.close()


def test_the_next_chunk_is_taken_while_a_commit_is_under_way_and_not_published_before_its_end(
    proxied_harness: tuple[KafkaHarness, Proxy],
) -> None:
    harness, proxy = proxied_harness
    # Or the client gives up on the commit that is held, and it is made again.
    patient = {"request_timeout_seconds": PATIENCE}
    harness.settings = harness.settings.model_copy(update=patient)
    consumer = harness.consumer()
    chunks = consumer.chunks()
    first = next(chunks)
    commit = Fault(api=Api.OFFSET_COMMIT, moment=Moment.BEFORE_ANSWER, action=Hold())
    held = proxy.arm(commit)
    consumer.complete(first, outcomes_of(first))
    assert held.struck.wait(PATIENCE)
    second = next(chunks)
    consumer.stop_by(time.monotonic() + 1)
    with pytest.raises(ChunkAbandonedError):
        consumer.complete(second, outcomes_of(second))
    assert sorted(harness.published()) == list(map(name_of, first.items))
    held.release()
    consumer.stop_by(math.inf)
    for chunk in chunks:
        consumer.complete(chunk, outcomes_of(chunk))
    assert sorted(harness.published()) == harness.names()


@pytest.mark.parametrize("moment", list(Moment))
def test_a_last_commit_that_is_lost_is_made_again_and_repeats_nothing(
    proxied_harness: tuple[KafkaHarness, Proxy], moment: Moment
) -> None:
    harness, proxy = proxied_harness
    consumer = harness.consumer()
    left = len(harness.names())
    for chunk in consumer.chunks():
        left -= len(chunk.items)
        if left == 0:
            # The one before must not be hit.
            consumer._publisher.finish_commit(Deadline(PATIENCE))
            proxy.arm(Fault(api=Api.OFFSET_COMMIT, moment=moment, action=Cut()))
        consumer.complete(chunk, outcomes_of(chunk))
    # Had it been left at that, what is not committed would have come again.
    assert left == 0
    assert sorted(harness.published()) == harness.names()


def test_a_commit_that_is_under_way_when_a_consumer_closes_is_done(
    proxied_harness: tuple[KafkaHarness, Proxy],
) -> None:
    harness, proxy = proxied_harness
    consumer = harness.consumer()
    chunk = next(consumer.chunks())
    proxy.arm(Fault(api=Api.OFFSET_COMMIT, moment=Moment.BEFORE_REQUEST, action=Delay(0.5)))
    consumer.complete(chunk, outcomes_of(chunk))
    consumer.close(PATIENCE)
    committed = harness.kafka.committed(harness.settings.group, harness.settings.input_topics[0])
    assert sum(committed.values()) == len(chunk.items)


def test_what_comes_while_a_chunk_is_in_hand_is_in_the_next_one(
    kafka: Kafka, topic_names: Iterator[str]
) -> None:
    harness = KafkaHarness(kafka, topic_names, "at-least-once")
    for chunk in (drained := harness.consumer()).chunks():
        drained.complete(chunk, outcomes_of(chunk))
    drained.close(1)
    consumer = harness.consumer()
    # Past the end that it has for the contract.
    chunks = KafkaTransport.chunks(consumer)
    sizes = []
    produce(harness, 1)
    for coming in (1, 5, 5):
        chunk = next_with_records(consumer, chunks)
        sizes.append(len(chunk.items))
        for _ in range(coming):
            produce(harness, 1)
        consumer.complete(chunk, outcomes_of(chunk))
        # As if this chunk had taken no time.
        consumer._chunk_size.records = 100
    harness.close()
    assert sizes == [1, 1, 5]


def next_with_records(consumer: KafkaTransport, chunks: Iterator[KafkaChunk]) -> KafkaChunk:
    for chunk in chunks:
        if chunk.items:
            break
        consumer.complete(chunk, [])
    return chunk


def produce(harness: KafkaHarness, number: int) -> None:
    topic = harness.settings.input_topics[0]
    harness.kafka.produce(topic, [(None, value_of(0, 0), [], 0, None)] * number)


def test_a_partition_that_was_paused_with_records_in_line_is_read_on(
    kafka: Kafka, topic_names: Iterator[str]
) -> None:
    topic = next(topic_names)
    kafka.create_topic(topic, partitions=2)
    first, second = (TopicPartition(topic, number) for number in (0, 1))
    settings = KafkaSettings(brokers=(kafka.bootstrap,))
    offsets: dict[TopicPartition, list[int]] = {first: [], second: []}
    with closing(new_consumer(settings, group_id=None)) as consumer:

        def read(partition: TopicPartition, number: int) -> None:
            def done() -> bool:
                polled = consumer.poll(timeout_ms=100, max_records=1)
                for each, records in polled.items():
                    offsets[each] += [record.offset for record in records]
                return len(offsets[partition]) == number

            wait_until(done, f"{number} records of {partition}")

        consumer.assign([first, second])
        consumer.seek_to_beginning()
        kafka.produce(topic, [(None, b"", [], 0, None)] * 3)
        read(first, 1)
        consumer.pause(first)
        consumer.poll(timeout_ms=100)
        kafka.produce(topic, [(None, b"", [], 1, None)])
        read(second, 1)
        resume(consumer)
        read(first, 3)
    assert offsets == {first: [0, 1, 2], second: [0]}
