"""Where `worker run` begins and goes on: never past a record that nobody has labelled."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from kafka import TopicPartition
from kafka.errors import KafkaTimeoutError, NoError
from kafka.structs import OffsetAndMetadata

from tests.kafka.broker import PATIENCE, wait_until
from tests.kafka.health import LISTEN, metrics, wait_until_not_ready, wait_until_ready
from tests.kafka.proxy import Api, Call, Fault, Hold, Moment, Proxy
from tests.kafka.stage import Stage, place_of
from worker.settings.schema import KafkaSettings
from worker.transports.kafka.client_internals import read_committed
from worker.transports.kafka.clients import new_consumer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from kafka import KafkaConsumer

    from tests.kafka.stage import WorkerProcess

EXACTLY_ONCE = {"KAFKA__GUARANTEE": "exactly-once"}
OLD = [f"old {number}" for number in range(40)]
NEW = [f"new {number}" for number in range(40)]
LOST = "records lost to retention"
NO_TOPIC = "the brokers do not answer: they are away, refuse our credentials, or lack a topic"


def places(stage: Stage) -> list[tuple[int, int]]:
    return sorted(map(place_of, stage.labels()))


def span(begin: int, end: int, partitions: Iterable[int] = (0, 1)) -> list[tuple[int, int]]:
    return [(partition, offset) for partition in partitions for offset in range(begin, end)]


def wait_until_begun(stage: Stage) -> None:
    """Wait until the group has a position in every partition."""

    def begun() -> bool:
        return len(stage.kafka.committed(stage.group, stage.input)) == stage.partitions

    wait_until(begun, "positions everywhere")


def label(stage: Stage, texts: list[str], **settings: str) -> None:
    """Let a worker label texts, and end."""
    stage.produce(texts)
    worker = stage.worker(**settings)
    stage.wait_until_done()
    assert worker.stop() == 0


def widen(stage: Stage, partitions: int) -> None:
    with stage.kafka.admin() as admin:
        admin.create_partitions({stage.input: partitions})
    stage.partitions = partitions


def commit(stage: Stage, offsets: Mapping[int, int]) -> None:
    """Set positions as kafka-consumer-groups does: with no text beside them."""
    positions = {
        TopicPartition(stage.input, partition): OffsetAndMetadata(offset, "", -1)
        for partition, offset in offsets.items()
    }
    with stage.kafka.admin() as admin:
        done = admin.alter_group_offsets(stage.group, positions)
    assert {*done.values()} == {NoError}, done


def forget(stage: Stage, *partitions: int) -> None:
    """Delete the group's positions in these partitions."""
    with stage.kafka.admin() as admin:
        done = admin.delete_group_offsets(
            stage.group, [TopicPartition(stage.input, number) for number in partitions]
        )
    assert {*done.values()} == {NoError}, done


def delete_group(stage: Stage) -> None:
    """Delete the group, once it has no members."""

    def deleted() -> bool:
        with stage.kafka.admin() as admin:
            return bool(admin.delete_groups([stage.group])[stage.group] == "OK")

    wait_until(deleted, "the group to be empty and deleted")


def expire(stage: Stage, before: Mapping[int, int]) -> None:
    """Delete records, as retention does."""
    with stage.kafka.admin() as admin:
        admin.delete_records(
            {TopicPartition(stage.input, number): offset for number, offset in before.items()}
        )


def recreate(stage: Stage) -> None:
    stage.kafka.delete_topic(stage.input)
    stage.kafka.create_topic(stage.input, partitions=stage.partitions)


def refused(worker: WorkerProcess) -> str:
    """Wait until a worker has ended by itself; returns the sentence that it leaves."""
    assert worker.wait() == 1, worker.output
    last = worker.output.splitlines()[-1]
    assert last.startswith("worker: "), worker.output
    return last


# A group that is new.


@pytest.mark.parametrize("workers", [1, 2])
def test_a_new_group_labels_all_there_is(stage: Stage, workers: int) -> None:
    stage.produce(OLD)
    for _ in range(workers):
        stage.worker(**EXACTLY_ONCE)
    wait_until_begun(stage)
    stage.produce(NEW)
    stage.wait_until_done()
    assert places(stage) == span(0, 40)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_new_group_that_starts_at_the_latest_labels_all_that_comes_after(
    stage: Stage, workers: int
) -> None:
    widen(stage, 4)
    stage.produce(OLD)
    for _ in range(workers):
        stage.worker(KAFKA__START="latest", **EXACTLY_ONCE)
    # What comes while the group begins may be before or after; nothing later is left out.
    while len(stage.kafka.committed(stage.group, stage.input)) < stage.partitions:
        stage.produce(NEW[:4])
    stage.produce(NEW)
    stage.wait_until_done()
    ends, labelled = stage.ends(), places(stage)
    for partition, end in ends.items():
        first = min(offset for number, offset in labelled if number == partition)
        assert 10 <= first <= end - 10
        assert [place for place in labelled if place[0] == partition] == span(
            first, end, [partition]
        )


@pytest.mark.parametrize("starts", [("earliest", "latest"), ("latest", "earliest")])
def test_a_group_that_has_begun_goes_on_where_it_stood(
    stage: Stage, starts: tuple[str, str]
) -> None:
    first, then = starts
    stage.produce(OLD)
    worker = stage.worker(KAFKA__START=first)
    wait_until_begun(stage)
    stage.produce(NEW)
    stage.wait_until_done()
    worker.stop()
    stage.produce(NEW)
    stage.worker(KAFKA__START=then)
    stage.wait_until_done()
    assert places(stage) == span(0 if first == "earliest" else 20, 60)


# Partitions and topics that are added.


@pytest.mark.parametrize("workers", [1, 3])
def test_partitions_that_were_added_are_labelled_from_their_first_record(
    stage: Stage, workers: int
) -> None:
    first = stage.worker(KAFKA__START="latest")
    wait_until_begun(stage)
    first.stop()
    widen(stage, 5)
    stage.produce(OLD)
    for _ in range(workers):
        stage.worker(KAFKA__START="latest", **EXACTLY_ONCE)
    stage.wait_until_done()
    assert places(stage) == span(0, 8, range(5))


def test_partitions_that_are_added_while_workers_run_are_labelled_from_their_first_record(
    stage: Stage,
) -> None:
    for _ in range(2):
        stage.worker(KAFKA__START="latest", **EXACTLY_ONCE)
    wait_until_begun(stage)
    widen(stage, 5)
    stage.produce(OLD)
    stage.wait_until_done()
    assert places(stage) == span(0, 8, range(5))


def test_a_topic_that_is_added_to_the_settings_is_labelled_from_its_first_record(
    stage: Stage,
) -> None:
    first = stage.worker(KAFKA__START="latest")
    wait_until_begun(stage)
    first.stop()
    known, stage.input = stage.input, next(stage.names)
    stage.kafka.create_topic(stage.input, partitions=2)
    stage.produce(OLD)
    stage.worker(KAFKA__START="latest", KAFKA__INPUT_TOPICS=f"{known},{stage.input}")
    stage.wait_until_done()
    assert places(stage) == span(0, 20)


# Positions that records have gone from.


def test_what_retention_has_taken_is_reported_of_once_and_the_rest_is_labelled(
    stage: Stage,
) -> None:
    label(stage, OLD)
    stage.produce(NEW)
    expire(stage, {0: 27, 1: 20})
    first = stage.worker(**LISTEN)
    stage.wait_until_done()
    first.wait_for(LOST, topic=stage.input, partition=0, offset=20, records=7)
    assert 'worker_lost_to_retention_total{process="0"} 7.0' in metrics(first)
    first.stop()
    assert places(stage) == [*span(0, 20, [0]), *span(27, 40, [0]), *span(0, 40, [1])]
    second = stage.worker(**LISTEN)
    wait_until_ready(second)
    second.stop()
    assert [entry["event"] for entry in first.events() + second.events()].count(LOST) == 1


@pytest.mark.slow
def test_what_retention_takes_while_a_worker_waits_is_reported_of_too(stage: Stage) -> None:
    label(stage, OLD)
    worker = stage.worker(KAFKA__DEAD_LETTER_TOPIC=next(stage.names))
    stage.produce_values([b"{", *(b'{"text": "gg"}' for _ in NEW[1:])])
    worker.wait_for("chunk abandoned: it will be done again")
    expire(stage, {0: 27})
    stage.wait_until_done()
    worker.wait_for(LOST, topic=stage.input, partition=0, offset=20, records=7)
    assert places(stage) == [*span(0, 20, [0]), *span(27, 40, [0]), *span(0, 40, [1])]


def test_a_position_beyond_the_end_ends_the_worker(stage: Stage) -> None:
    stage.produce(OLD)
    commit(stage, {0: 20, 1: 21})
    sentence = refused(stage.worker())
    assert f"the committed offset 21 is beyond the end of partition 1 of {stage.input}" in sentence
    assert "--reset-offsets" in sentence
    assert stage.labels() == []
    assert stage.kafka.committed(stage.group, stage.input) == {0: 20, 1: 21}


# Positions that are gone.


@pytest.mark.slow
@pytest.mark.parametrize("start", ["earliest", "latest"])
@pytest.mark.parametrize("how", ["offsets", "group", "topic"])
def test_a_group_that_has_labelled_does_not_begin_anew_when_its_positions_are_gone(
    stage: Stage, start: str, how: str
) -> None:
    label(stage, OLD, KAFKA__GUARANTEE="exactly-once")
    if how == "offsets":
        forget(stage, 0, 1)
    elif how == "group":
        delete_group(stage)
    else:
        recreate(stage)
    stage.produce(NEW)
    sentence = refused(stage.worker(KAFKA__START=start))
    assert f"the group {stage.group} has worked before" in sentence
    assert "its offsets for all partitions are gone" in sentence
    assert "--reset-offsets" in sentence
    assert len(stage.labels()) == len(OLD)
    assert stage.kafka.committed(stage.group, stage.input) == {}


@pytest.mark.parametrize("start", ["earliest", "latest"])
def test_a_group_that_has_lost_one_of_its_positions_does_not_make_one_up(
    stage: Stage, start: str
) -> None:
    label(stage, OLD)
    forget(stage, 1)
    stage.produce(NEW)
    sentence = refused(stage.worker(KAFKA__START=start))
    assert f"its offsets for partition 1 of {stage.input} are gone" in sentence
    assert 1 not in stage.kafka.committed(stage.group, stage.input)


def test_the_labels_of_another_group_do_not_make_a_group_known(stage: Stage) -> None:
    label(stage, OLD)
    stage.group = next(stage.names)
    stage.worker(KAFKA__GROUP=stage.group)
    stage.wait_until_done()
    assert len(stage.labels()) == 2 * len(OLD)


@pytest.mark.slow
def test_a_group_is_known_by_its_labels_among_those_of_other_groups(stage: Stage) -> None:
    label(stage, OLD)
    forget(stage, 0, 1)
    group, stage.group = stage.group, next(stage.names)
    label(stage, NEW, KAFKA__GROUP=stage.group)
    assert f"the group {group} has worked before" in refused(stage.worker(KAFKA__GROUP=group))


def test_a_worker_whose_group_was_deleted_while_it_slept_does_not_begin_anew(
    stage: Stage,
) -> None:
    stage.produce(OLD)
    worker = stage.worker(KAFKA__START="latest")
    wait_until_begun(stage)
    stage.produce(NEW)
    stage.wait_until_done()
    worker.pause()
    delete_group(stage)
    stage.produce(NEW)
    worker.resume()
    assert "its offsets for all partitions are gone" in refused(worker)


@pytest.mark.slow
def test_positions_that_are_set_by_hand_hold(stage: Stage) -> None:
    label(stage, OLD)
    forget(stage, 0)
    commit(stage, {0: 15, 1: 18})
    label(stage, NEW)
    assert places(stage) == sorted([*span(0, 40), *span(15, 20, [0]), *span(18, 20, [1])])
    commit(stage, {0: 39, 1: 40})
    stage.produce(["last"])
    stage.worker(KAFKA__START="latest")
    stage.wait_until_done()
    assert len(places(stage)) == 40 + 40 + 5 + 2 + 2


# Topics that are not there.


@pytest.mark.slow
def test_a_worker_waits_for_a_topic_that_is_missing(stage: Stage) -> None:
    stage.input = next(stage.names)
    worker = stage.worker(KAFKA__INPUT_TOPICS=stage.input, **LISTEN)
    wait_until_not_ready(worker, NO_TOPIC)
    stage.kafka.create_topic(stage.input, partitions=2)
    stage.produce(OLD)
    stage.wait_until_done()
    wait_until_ready(worker)
    assert places(stage) == span(0, 20)


@pytest.mark.slow
def test_a_worker_that_misses_one_topic_labels_the_other(stage: Stage) -> None:
    known, stage.input = stage.input, next(stage.names)
    stage.worker(KAFKA__INPUT_TOPICS=f"{known},{stage.input}")
    stage.kafka.produce(known, [(None, b'{"text": "gg"}', [], 0, None)])
    wait_until(lambda: len(stage.labels()) == 1, "the label of the topic that is there")
    stage.kafka.create_topic(stage.input, partitions=2)
    stage.produce(OLD)
    stage.wait_until_done()
    assert len(stage.labels()) == 1 + len(OLD)


@pytest.mark.slow
def test_a_worker_waits_while_its_topic_is_deleted_and_goes_by_the_rules_when_it_is_there_again(
    stage: Stage,
) -> None:
    worker = stage.worker(**LISTEN)
    stage.produce(OLD)
    stage.wait_until_done()
    stage.kafka.delete_topic(stage.input)
    wait_until_not_ready(worker, NO_TOPIC)
    stage.kafka.create_topic(stage.input, partitions=2)
    stage.produce([*OLD, *NEW])
    # Whether it first finds that its offsets are gone, or the records before them, is open.
    assert "set the group's offsets with kafka-consumer-groups" in refused(worker)
    assert len(stage.labels()) == len(OLD)


def test_a_topic_that_is_made_anew_under_a_worker_is_not_taken_for_the_old_one(
    stage: Stage,
) -> None:
    worker = stage.worker()
    stage.produce(OLD)
    stage.wait_until_done()
    recreate(stage)
    stage.produce([*OLD, *NEW])
    assert "--reset-offsets" in refused(worker)
    assert len(stage.labels()) == len(OLD)


def test_a_worker_waits_while_the_topic_of_its_labels_is_missing(stage: Stage) -> None:
    stage.output = next(stage.names)
    stage.produce(OLD)
    worker = stage.worker(KAFKA__OUTPUT_TOPIC=stage.output, **LISTEN)
    wait_until_not_ready(worker, NO_TOPIC)
    stage.kafka.create_topic(stage.output)
    stage.wait_until_done()
    wait_until_ready(worker)
    assert places(stage) == span(0, 20)


# Positions are read all at once, and anew each time.


@pytest.fixture
def reader(proxied: tuple[Stage, Proxy]) -> Iterator[KafkaConsumer]:
    """Return a consumer of the group of a stage, which comes by way of the proxy."""
    stage, _ = proxied
    settings = KafkaSettings(brokers=(stage.bootstrap,), group=stage.group)
    with closing(new_consumer(settings)) as consumer:
        yield consumer


def read(stage: Stage, reader: KafkaConsumer, timeout: float = PATIENCE) -> list[int | None]:
    partitions = [TopicPartition(stage.input, number) for number in range(stage.partitions)]
    committed = read_committed(reader, partitions, timeout)
    return [position and position.offset for position in map(committed.get, partitions)]


def test_positions_are_those_of_one_moment(
    proxied: tuple[Stage, Proxy], reader: KafkaConsumer
) -> None:
    stage, proxy = proxied
    begin = Call(lambda: commit(stage, {0: 5, 1: 5}))
    proxy.arm(Fault(api=Api.OFFSET_FETCH, moment=Moment.BEFORE_ANSWER, action=begin))
    assert read(stage, reader) == [None, None]
    assert read(stage, reader) == [5, 5]


def test_an_answer_that_was_late_is_not_taken_for_a_later_one(
    proxied: tuple[Stage, Proxy], reader: KafkaConsumer
) -> None:
    stage, proxy = proxied
    late = proxy.arm(Fault(api=Api.OFFSET_FETCH, moment=Moment.BEFORE_ANSWER, action=Hold()))
    with pytest.raises(KafkaTimeoutError):
        read(stage, reader, 1)
    assert late.struck.is_set()
    commit(stage, {0: 5, 1: 5})
    (unanswered,) = reader._coordinator._offset_fetch_futures.values()
    late.release()
    wait_until(lambda: unanswered.is_done, "the late answer")
    assert read(stage, reader) == [5, 5]
