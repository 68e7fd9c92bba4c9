"""Death, sleep and rebalances at exact moments between a worker and its broker.

A proxy recognises the requests, so that a fault strikes before one is sent on or before its answer
is. Exactly-once must stay exact; at-least-once may repeat a chunk for each worker that was hit.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from kafka import KafkaConsumer
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.coordinator.assignors.range import RangePartitionAssignor

from tests.kafka.broker import wait_until
from tests.kafka.proxy import Api, Call, Cut, Fault, Ghost, Hold, Moment, Proxy
from tests.kafka.stage import Stage, WorkerProcess, place_of
from tests.kafka.stalling import STALLING

if TYPE_CHECKING:
    from pathlib import Path

    from kafka.consumer.fetcher import ConsumerRecord

GUARANTEES = pytest.mark.parametrize("guarantee", ["at-least-once", "exactly-once"])
TEXTS = [f"message {number}" for number in range(200)]
PLACES = [(partition, offset) for partition in (0, 1) for offset in range(100)]
CHUNK = 20
AT_LEAST_ONCE = [Api.FETCH, Api.PRODUCE, Api.OFFSET_COMMIT]
EXACTLY_ONCE = [Api.FETCH, Api.PRODUCE, Api.ADD_OFFSETS_TO_TXN, Api.TXN_OFFSET_COMMIT, Api.END_TXN]
MOMENTS = pytest.mark.parametrize("moment", list(Moment), ids=lambda moment: moment.name.lower())


def named(apis: list[Api]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("api", apis, ids=lambda api: api.name.lower())


def repeats(records: list[ConsumerRecord]) -> int:
    return sum(count - 1 for count in Counter(map(place_of, records)).values())


def start(stage: Stage, guarantee: str, **settings: str) -> WorkerProcess:
    return stage.worker(KAFKA__GUARANTEE=guarantee, KAFKA__CHUNK_RECORDS=str(CHUNK), **settings)


def kill_one(stage: Stage, proxy: Proxy, guarantee: str, api: Api, moment: Moment) -> None:
    """Let a worker die at a moment, and another do the rest."""
    victims: list[WorkerProcess] = []
    kill = Call(lambda: victims[0].kill(), then=Cut())  # noqa: PLW0108 - it starts later
    fault = proxy.arm(Fault(api=api, moment=moment, action=kill, client_id="worker-0", skip=3))
    victims.append(start(stage, guarantee))
    assert fault.struck.wait(60)
    survivor = start(stage, guarantee)
    survivor.wait_for("model loaded")
    stage.wait_until_done()
    assert survivor.stop() == 0


@pytest.mark.slow
@MOMENTS
@named(AT_LEAST_ONCE)
def test_a_kill_costs_at_least_once_no_label_and_repeats_at_most_a_chunk(
    proxied: tuple[Stage, Proxy], api: Api, moment: Moment
) -> None:
    stage, proxy = proxied
    stage.produce(TEXTS)
    kill_one(stage, proxy, "at-least-once", api, moment)
    labels = stage.labels()
    assert sorted(set(map(place_of, labels))) == PLACES
    assert repeats(labels) <= CHUNK


@pytest.mark.slow
@MOMENTS
@named(EXACTLY_ONCE)
def test_a_kill_leaves_exactly_once_exact(
    proxied: tuple[Stage, Proxy], api: Api, moment: Moment
) -> None:
    stage, proxy = proxied
    stage.produce(TEXTS)
    kill_one(stage, proxy, "exactly-once", api, moment)
    assert sorted(map(place_of, stage.labels())) == PLACES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "after"),
    [
        # Had the worker sent it again and gone on, the late one would end the next transaction,
        # whose labels stand there already, without its positions.
        (Api.END_TXN, Api.ADD_OFFSETS_TO_TXN),
        # ... or take the positions of the next transaction back.
        (Api.TXN_OFFSET_COMMIT, Api.END_TXN),
    ],
    ids=["end_txn", "txn_offset_commit"],
)
def test_a_request_that_was_lost_and_comes_late_leaves_exactly_once_exact(
    proxied: tuple[Stage, Proxy], lost: Api, after: Api
) -> None:
    stage, proxy = proxied
    stage.produce(TEXTS)
    begun = 3
    ghost = proxy.arm(Fault(api=lost, moment=Moment.BEFORE_REQUEST, action=Ghost(), skip=begun))

    victims: list[WorkerProcess] = []

    def appear() -> None:
        ghost.release()
        assert ghost.answered.wait(60)

    def appear_and_kill() -> None:
        appear()
        victims[0].kill()

    next_one = Fault(api=after, moment=Moment.BEFORE_REQUEST, action=Cut(), skip=begun + 1)
    if lost is Api.END_TXN:
        death = proxy.arm(replace(next_one, action=Call(appear_and_kill, then=Cut())))
    else:
        proxy.arm(replace(next_one, action=Call(appear)))
        kill = Call(lambda: victims[0].kill(), then=Cut())  # noqa: PLW0108 - it starts later
        death = proxy.arm(replace(next_one, moment=Moment.BEFORE_ANSWER, action=kill))
    victims.append(start(stage, "exactly-once"))
    assert death.struck.wait(60)
    survivor = start(stage, "exactly-once")
    stage.wait_until_done()
    assert survivor.stop() == 0
    assert sorted(map(place_of, stage.labels())) == PLACES


def put_one_to_sleep(stage: Stage, proxy: Proxy, guarantee: str, api: Api, timeout: int) -> None:
    """Stop a worker with a request on its way, let another take over, and wake it."""
    sleepers: list[WorkerProcess] = []
    sleep = Call(lambda: sleepers[0].pause(), then=Hold())  # noqa: PLW0108 - it starts later
    moment = Moment.BEFORE_REQUEST
    fault = proxy.arm(Fault(api=api, moment=moment, action=sleep, client_id="worker-0", skip=2))
    more = {"KAFKA__TRANSACTION_TIMEOUT_SECONDS": str(timeout)}
    sleepers.append(start(stage, guarantee, **more))
    assert fault.struck.wait(60)
    asleep = members(stage)
    successor = start(stage, guarantee, **more)
    if timeout < 10 or guarantee == "at-least-once":
        stage.wait_until_done()
    else:
        # The open transaction keeps the successor waiting until the sleeper is back.
        wait_until(lambda: bool(members(stage) - asleep), "the successor in the group")
        wait_until(lambda: asleep.isdisjoint(members(stage)), "the sleeper out of the group")
    fault.release()
    sleepers[0].resume()
    stage.wait_until_done()
    stage.produce(TEXTS)
    stage.wait_until_done()
    assert successor.stop() == 0
    stage.produce(TEXTS)
    stage.wait_until_done()
    assert sleepers[0].stop() == 0


def members(stage: Stage) -> set[str]:
    """Return the ids that the group's coordinator has given to those in it."""
    with stage.kafka.admin() as admin:
        group = admin.describe_groups([stage.group])[stage.group]
    return {member["member_id"] for member in group["members"]}


@pytest.mark.slow
@named([Api.PRODUCE, Api.OFFSET_COMMIT])
def test_a_zombie_costs_at_least_once_no_label_and_repeats_at_most_a_chunk(
    proxied: tuple[Stage, Proxy], api: Api
) -> None:
    stage, proxy = proxied
    stage.produce(TEXTS)
    put_one_to_sleep(stage, proxy, "at-least-once", api, timeout=4)
    labels = stage.labels()
    assert sorted(set(map(place_of, labels))) == [(p, n) for p in (0, 1) for n in range(300)]
    assert repeats(labels) <= CHUNK


@pytest.mark.slow
@pytest.mark.parametrize("timeout", [4, 30])
@named(
    [
        Api.ADD_PARTITIONS_TO_TXN,
        Api.PRODUCE,
        Api.ADD_OFFSETS_TO_TXN,
        Api.TXN_OFFSET_COMMIT,
        Api.END_TXN,
    ]
)
def test_a_zombie_leaves_exactly_once_exact(
    proxied: tuple[Stage, Proxy], api: Api, timeout: int
) -> None:
    stage, proxy = proxied
    stage.produce(TEXTS)
    put_one_to_sleep(stage, proxy, "exactly-once", api, timeout)
    labels = sorted(map(place_of, stage.labels()))
    assert labels == [(p, n) for p in (0, 1) for n in range(300)]


@pytest.mark.slow
@GUARANTEES
def test_a_worker_whose_engine_stalls_loses_its_partitions_and_repeats_nothing_later(
    stage: Stage, guarantee: str, tmp_path: Path
) -> None:
    wait = tmp_path / "wait"
    wait.touch()
    stage.produce([*TEXTS[:60], STALLING, *TEXTS[61:]])
    more = {"module": "tests.kafka.stalling", "KAFKA__DEADLINE_SECONDS": "2"}
    more["KAFKA__MAX_POLL_INTERVAL_SECONDS"] = "4"
    stage.settings["KAFKA__CHUNK_RECORDS"] = str(CHUNK)
    stage.environment["STALL_WHILE"] = str(wait)
    stalled = stage.worker(KAFKA__GUARANTEE=guarantee, **more)
    wait_until(lambda: len(stage.labels()) > 0, "the first labels")
    wait_until(lambda: not members(stage), "it has left")
    successor = stage.worker(KAFKA__GUARANTEE=guarantee)
    stage.wait_until_done()
    wait.unlink()
    stalled.wait_for("chunk abandoned: it will be done again")
    stage.produce(TEXTS)
    stage.wait_until_done()
    assert successor.stop() == stalled.stop() == 0
    assert sorted(map(place_of, stage.labels())) == [(p, n) for p in (0, 1) for n in range(200)]


@pytest.mark.slow
@GUARANTEES
@pytest.mark.parametrize("assignment", ["cooperative", "range"])
def test_a_storm_of_rebalances_loses_nothing_and_does_not_stop_the_work(
    stage: Stage, guarantee: str, assignment: str
) -> None:
    stage.produce(TEXTS)
    workers = [start(stage, guarantee, KAFKA__ASSIGNMENT=assignment) for _ in range(2)]
    stage.wait_until_done()
    stage.produce(TEXTS * 5)
    before = sum(stage.kafka.committed(stage.group, stage.input).values())
    for _ in range(5):
        come_and_go(stage, assignment)
    during = sum(stage.kafka.committed(stage.group, stage.input).values())
    assert during > before
    stage.wait_until_done()
    assert [worker.stop() for worker in workers] == [0, 0]
    labels = stage.labels()
    assert sorted(set(map(place_of, labels))) == [(p, n) for p in (0, 1) for n in range(600)]
    assert repeats(labels) <= (CHUNK * 10 if guarantee == "at-least-once" else 0)


def come_and_go(stage: Stage, assignment: str) -> None:
    """Join the group, take no record, and leave."""
    assignor = CooperativeStickyAssignor if assignment == "cooperative" else RangePartitionAssignor
    member = KafkaConsumer(
        bootstrap_servers=stage.kafka.bootstrap,
        group_id=stage.group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        session_timeout_ms=3000,
        heartbeat_interval_ms=500,
        partition_assignment_strategy=[assignor],
    )
    member.subscribe([stage.input])
    gone = threading.Event()
    try:
        for _ in range(5):
            member.poll(timeout_ms=200, max_records=1)
            gone.wait(0.1)
    finally:
        member.close()
