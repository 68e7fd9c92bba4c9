"""Whatever a broker accepts ends as a label or a dead letter, and its neighbours go on.

Each record here stopped a worker once. They stand in one partition among honest records, which also
come in the other. Where nothing can be done, the log says what is wrong.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from kafka import KafkaProducer

from tests.kafka.broker import PATIENCE
from tests.kafka.hostile import ATTACKS, HONEST, LABEL, NOT_UTF8, now_ms
from tests.kafka.raw import RawProducer
from tests.kafka.stage import header, place_of
from tests.record_batches import Raw, record_batch
from worker.events.records import ErrorKind

if TYPE_CHECKING:
    from tests.kafka.stage import Stage

NEIGHBOURS = 50
KINDS = set(ErrorKind)


@pytest.mark.slow
@pytest.mark.parametrize("guarantee", ["at-least-once", "exactly-once"])
@pytest.mark.parametrize("name", ATTACKS)
def test_hostile_records_and_their_neighbours_all_get_what_is_theirs(
    stage: Stage, guarantee: str, name: str
) -> None:
    attack = ATTACKS[name]
    now = now_ms()
    honest = record_batch([HONEST] * NEIGHBOURS, timestamp=now)
    with RawProducer(stage.kafka) as producer:
        producer.append(stage.input, 0, honest)
        producer.append(stage.input, 0, attack.batch())
        producer.append(stage.input, 0, honest)
        producer.append(stage.input, 1, honest)
    worker = stage.worker(KAFKA__GUARANTEE=guarantee, KAFKA__UNDECODABLE="dead-letter")
    stage.wait_until_done()
    end = 2 * NEIGHBOURS + len(attack.records)
    assert stage.kafka.committed(stage.group, stage.input) == {0: end, 1: NEIGHBOURS}
    assert worker.stop() == 0
    labels, letters = stage.labels(), stage.dead_letters()
    outcomes = dict(enumerate(attack.outcomes, NEIGHBOURS))
    dead = {offset: kind for offset, kind in outcomes.items() if kind in KINDS}
    assert {place_of(each)[1]: header(each, "worker-kind") for each in letters} == dead
    assert len(letters) == len(dead)
    labelled = [(0, n) for n in range(end) if outcomes.get(n, LABEL) == LABEL]
    assert sorted(map(place_of, labels)) == labelled + [(1, n) for n in range(NEIGHBOURS)]
    sent = sorted(
        name for record in attack.records for name, _ in record.headers if name == NOT_UTF8
    )
    names = [name for each in [*labels, *letters] for name, _ in each.headers]
    assert [n for n in names if n.encode("utf-8", "surrogateescape") == NOT_UTF8] == [
        NOT_UTF8.decode("utf-8", "surrogateescape")
    ] * len(sent)


def test_a_transaction_that_stays_open_is_told_of_and_hides_what_comes_behind_it(
    stage: Stage,
) -> None:
    settings = stage.kafka.settings
    with closing(KafkaProducer(**settings, transactional_id=stage.group)) as producer:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(stage.input, HONEST.value, partition=0).get(PATIENCE)
        with RawProducer(stage.kafka) as honest:
            honest.append(stage.input, 0, record_batch([HONEST] * 5))
        worker = stage.worker(RUN__LISTEN="127.0.0.1:0")
        worker.wait_for(
            "a transaction of a producer stays open: what comes behind it waits",
            topic=stage.input,
            partition=0,
            offset=0,
            records=6,
        )
        assert stage.labels() == []
        producer.commit_transaction()
    stage.wait_until_done()
    assert len(stage.labels()) == 6
    assert worker.stop() == 0


def test_a_topic_that_cannot_be_read_ends_the_worker_before_all_of_it_is_dead_letters(
    stage: Stage,
) -> None:
    framed = record_batch([Raw(b"\0\0\0\0\1" + b"\x0agg")] * 5000, timestamp=now_ms())
    with RawProducer(stage.kafka) as producer:
        for partition in range(stage.partitions):
            producer.append(stage.input, partition, framed)
    worker = stage.worker(KAFKA__CHUNK_RECORDS="100")
    assert worker.wait() == 1
    assert "records became dead letters" in worker.output
    last = worker.output.splitlines()[-1]
    assert last.startswith("worker: 1000 of the last 1000 records cannot be read, most of them are")
    assert "see kafka.format" in last
    assert len(stage.dead_letters()) < 2000
    stage.worker(KAFKA__MAX_UNREADABLE="1")
    stage.wait_until_done()
    assert len(stage.dead_letters()) == 5000 * stage.partitions
