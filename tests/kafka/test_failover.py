"""Three brokers, of which one goes while workers run: what was acknowledged stays."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import pytest
from kafka.errors import KafkaError

from tests.kafka.broker import PATIENCE, wait_until
from tests.kafka.stage import Stage, place_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kafka.broker import Cluster, Node

CHUNK = 20
TEXTS = [f"message {number}" for number in range(400)]


@pytest.fixture
def cluster_stage(
    kafka_cluster: Cluster, topic_names: Iterator[str], tmp_path: Path
) -> Iterator[Stage]:
    """Return a stage on three brokers."""
    with Stage(kafka_cluster, topic_names, tmp_path) as stage:
        yield stage


def leave(node: Node, how: str) -> None:
    {"killed": node.kill, "hung": node.pause}[how]()


def come_back(node: Node, how: str) -> None:
    {"killed": node.start, "hung": node.resume}[how]()


def done(stage: Stage) -> int:
    return sum(stage.kafka.committed(stage.group, stage.input).values())


def goes_on(stage: Stage, before: int) -> bool:
    try:
        return done(stage) > before
    except KafkaError:
        # The one that asks is as far from the broker that has gone as the workers are.
        return False


@pytest.mark.slow
@pytest.mark.parametrize("guarantee", ["at-least-once", "exactly-once"])
@pytest.mark.parametrize("how", ["killed", "hung"])
def test_brokers_go_one_after_the_other_and_no_label_is_lost(
    cluster_stage: Stage, kafka_cluster: Cluster, guarantee: str, how: str
) -> None:
    stage = cluster_stage
    workers = [
        stage.worker(KAFKA__GUARANTEE=guarantee, KAFKA__CHUNK_RECORDS=str(CHUNK)) for _ in range(2)
    ]
    stage.produce(TEXTS)
    stage.wait_until_done()
    for node in kafka_cluster.nodes:
        before = done(stage)
        stage.produce(TEXTS)
        leave(node, how)
        # With two of three brokers the work goes on, once timeouts have told that one hangs.
        wait_until(partial(goes_on, stage, before), "work meanwhile", 3 * PATIENCE)
        come_back(node, how)
        kafka_cluster.revive()
    stage.wait_until_done()
    assert [worker.stop() for worker in workers] == [0, 0]
    labels = [place_of(label) for label in stage.labels()]
    events = len(TEXTS) * (1 + len(kafka_cluster.nodes))
    assert sorted(set(labels)) == [(p, n) for p in (0, 1) for n in range(events // 2)]
    repeats = sum(count - 1 for count in Counter(labels).values())
    # At most a chunk for each worker that each broker's loss has hit.
    most = CHUNK * len(workers) * len(kafka_cluster.nodes)
    assert repeats <= (most if guarantee == "at-least-once" else 0)
