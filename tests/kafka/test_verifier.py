"""The verifier finds what is wrong: in topics made up for it, and of workers that are broken.

Each broken worker meets the one fault that shows its flaw. The worker as it is meets the same, and
comes out clean.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.kafka.broker import PATIENCE
from tests.kafka.proxy import HOST, Api, BlackHole, Call, Cut, Fault, Hold, Moment, Proxy
from tests.kafka.stage import Stage
from tests.kafka.verifier import Report, compare, replay, verify
from worker.events.encoding import LabelEncoder
from worker.events.records import TopicPlace
from worker.transports.kafka.records import ProducerRecordEncoder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kafka.broker import Kafka, Node
    from tests.kafka.proxy import Armed
    from tests.kafka.stage import WorkerProcess
    from tests.kafka.verifier import Truth
    from worker.inference.classifier import Classifier

TEXTS = [f"message {number}" for number in range(200)]
NOTHING_WRONG = Report(len(TEXTS))


class Record(NamedTuple):
    """As kafka-python gives them, in what the verifier reads."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    timestamp: int = 1_700_000_000_000
    serialized_key_size: int = 0
    serialized_value_size: int = 0
    serialized_header_size: int = 0


def place(offset: int) -> TopicPlace:
    return TopicPlace("chat", 0, offset)


@pytest.fixture
def truth(classifier: Classifier) -> Truth:
    """Return what must come out of seven records: the sixth is broken, the last a tombstone."""
    values = [*(b'{"text": "%d"}' % number for number in range(5)), b"{", None]
    sources = [Record("chat", 0, n, b"a", value, []) for n, value in enumerate(values)]
    encoder = ProducerRecordEncoder(
        LabelEncoder("test", "0"), "labels", "dead", "group", max_bytes=2**20
    )
    return replay(sources, classifier, encoder)


def written(truth: Truth, *offsets: int) -> list[Record]:
    """Return what must come out of some records, in this order on its topic."""
    messages = [truth[place(offset)] for offset in offsets]
    return [
        Record(m.topic, 0, n, m.key, m.value, m.headers, m.timestamp or 0)
        for n, m in enumerate(messages)
        if m is not None
    ]


def test_what_is_right_is_found_right(truth: Truth) -> None:
    assert compare(truth, written(truth, 0, 1, 2, 3, 4), written(truth, 5)) == Report(7)


def test_what_is_missing_is_found(truth: Truth) -> None:
    report = compare(truth, written(truth, 0, 1, 3, 4), [])
    assert report == Report(7, lost=[place(2), place(5)])


def test_what_comes_again_is_found_and_is_not_out_of_order(truth: Truth) -> None:
    labels = written(truth, 0, 1, 2, 0, 1, 3, 0, 4)
    report = compare(truth, labels, written(truth, 5, 5))
    assert report == Report(7, duplicated=[place(0), place(1), place(0), place(5)])


def test_what_comes_late_is_found_unless_it_has_another_key_or_none(truth: Truth) -> None:
    labels = written(truth, 0, 2, 4, 3, 1)
    letters = written(truth, 5)
    assert compare(truth, labels, letters) == Report(7, out_of_order=[place(3), place(1)])
    others = {p: m._replace(key=b"b" if p.offset % 2 else None) for p, m in truth.items() if m}
    labels = written(others, 0, 1, 4, 3, 2)
    assert compare({**truth, **others}, labels, written(others, 5)) == Report(7)


@pytest.mark.parametrize(
    "changed",
    [
        {"value": b"{}"},
        {"key": b"b"},
        {"timestamp": 0},
        {"headers": lambda headers: [("more", b""), *headers]},
    ],
    ids=["value", "key", "timestamp", "headers"],
)
def test_a_label_that_differs_in_any_byte_is_found(truth: Truth, changed: dict[str, Any]) -> None:
    labels = written(truth, 0, 1, 2, 3, 4)
    values = {k: v(labels[2].headers) if callable(v) else v for k, v in changed.items()}
    labels[2] = labels[2]._replace(**values)
    assert compare(truth, labels, written(truth, 5)) == Report(7, mislabelled=[place(2)])


def test_what_nothing_asked_for_is_found(truth: Truth) -> None:
    ours = written(truth, 0)[0]
    of_tombstone = ours._replace(headers=[*ours.headers, ("worker-offset", b"6")])
    of_nothing = ours._replace(offset=8, headers=[*ours.headers, ("worker-offset", b"7")])
    nameless = ours._replace(offset=9, headers=[])
    labels = [*written(truth, 0, 1, 2, 3, 4), of_tombstone, of_nothing, nameless]
    unexpected = [place(6), TopicPlace("labels", 0, 8), TopicPlace("labels", 0, 9)]
    assert compare(truth, labels, written(truth, 5)) == Report(7, unexpected=unexpected)


def test_outcomes_of_the_wrong_kind_are_found(truth: Truth) -> None:
    labels = written(truth, 0, 1, 2, 3, 5)
    letter = written(truth, 4)[0]._replace(topic="dead")
    labels[4] = labels[4]._replace(topic="labels")
    assert compare(truth, labels, [letter]) == Report(7, unexpected=[place(5), place(4)])
    deadly = letter._replace(headers=[*letter.headers, ("worker-kind", b"deadly")])
    report = compare(truth, written(truth, 0, 1, 2, 3), [*written(truth, 5), deadly])
    assert report == Report(7, given_up=[place(4)])


def test_a_report_tells_counts_and_the_first_places() -> None:
    report = Report(9, lost=[place(n) for n in range(6)], duplicated=[place(1)])
    assert str(report).splitlines()[:3] == [
        "messages             9",
        "lost                 6  chat-0-0 chat-0-1 chat-0-2 chat-0-3 chat-0-4 ...",
        "duplicated           1  chat-0-1",
    ]
    assert report.counts()["lost"] == 6


@dataclass
class Scene:
    """Workers that come by way of a proxy, and may be broken."""

    stage: Stage
    proxy: Proxy
    classifier: Classifier

    def start(self, flaw: str | None, **settings: str) -> WorkerProcess:
        self.stage.environment["FLAW"] = flaw or ""
        return self.stage.worker("tests.kafka.broken", KAFKA__CHUNK_RECORDS="50", **settings)

    def finish(self) -> Report:
        """End all workers, and see what they have done."""
        assert [worker.stop() for worker in self.stage.workers if worker.running]
        return verify(self.stage, self.classifier)


@pytest.fixture
def scene(
    kafka: Kafka,
    kafka_node: Node,
    topic_names: Iterator[str],
    tmp_path: Path,
    classifier: Classifier,
) -> Iterator[Scene]:
    address = f"{HOST}:{kafka_node.proxy_port}"
    with (
        Proxy(kafka_node.proxy_port, kafka_node.proxied_port) as proxy,
        Stage(kafka, topic_names, tmp_path, bootstrap=address) as stage,
    ):
        yield Scene(stage, proxy, classifier)


def flawed_and_not(flaw: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("flaw", [flaw, None], ids=["broken", "sound"])


@pytest.mark.slow
@flawed_and_not("commit_first")
def test_who_commits_first_loses_what_it_was_about_to_publish(
    scene: Scene, flaw: str | None
) -> None:
    def kill() -> None:
        scene.stage.workers[0].kill()

    killed = scene.proxy.arm(
        Fault(api=Api.PRODUCE, moment=Moment.BEFORE_REQUEST, action=Call(kill, Cut()))
    ).struck
    scene.stage.produce(TEXTS)
    scene.start(flaw)
    assert killed.wait(PATIENCE)
    scene.start(flaw)
    scene.stage.wait_until_done()
    report = scene.finish()
    assert report == replace(NOTHING_WRONG, lost=report.lost)
    assert bool(report.lost) == bool(flaw)


@flawed_and_not("never_rewind")
def test_who_never_rewinds_loses_what_it_abandoned(scene: Scene, flaw: str | None) -> None:
    lose = Fault(api=Api.PRODUCE, moment=Moment.BEFORE_REQUEST, action=BlackHole())
    lost = scene.proxy.arm(lose).struck
    scene.stage.produce(TEXTS)
    # It does not ask again before the chunk's time is over.
    long = dict.fromkeys(
        ["KAFKA__REQUEST_TIMEOUT_SECONDS", "KAFKA__MAX_POLL_INTERVAL_SECONDS"], "60"
    )
    worker = scene.start(flaw, KAFKA__GUARANTEE="exactly-once", KAFKA__DEADLINE_SECONDS="2", **long)
    worker.wait_for("chunk abandoned: it will be done again")
    assert lost.is_set()
    scene.stage.wait_until_done()
    report = scene.finish()
    assert report == replace(NOTHING_WRONG, lost=report.lost)
    assert bool(report.lost) == bool(flaw)


@pytest.mark.slow
@flawed_and_not("ask_for_the_group_late")
def test_who_asks_for_the_group_late_commits_what_is_no_longer_its_own(
    scene: Scene, flaw: str | None
) -> None:
    patient = {
        "KAFKA__GUARANTEE": "exactly-once",
        "KAFKA__SESSION_TIMEOUT_SECONDS": "2",
        "KAFKA__REQUEST_TIMEOUT_SECONDS": "60",
        "KAFKA__TRANSACTION_TIMEOUT_SECONDS": "150",
        "KAFKA__DEADLINE_SECONDS": "150",
        "KAFKA__MAX_POLL_INTERVAL_SECONDS": "300",
    }
    evicted = scene.start(flaw, **patient)

    def arm(api: Api, moment: Moment, action: Any) -> Any:
        fault = Fault(api=api, moment=moment, action=action, client_id="worker-0")
        return scene.proxy.arm(fault)

    # It stalls with a chunk in hand, before its transaction begins, until it is out of the group
    # and another has labelled everything.
    stall = Call(evicted.pause, Hold())
    stalled = arm(Api.ADD_PARTITIONS_TO_TXN, Moment.BEFORE_REQUEST, stall)
    scene.stage.produce(TEXTS)
    assert stalled.struck.wait(PATIENCE)
    scene.start(flaw, **patient)
    scene.stage.wait_until_done()
    # It goes on once it knows.
    told = arm(Api.HEARTBEAT, Moment.BEFORE_ANSWER, Call(lambda: None))
    evicted.resume()
    assert told.struck.wait(PATIENCE)
    joins = arm(Api.JOIN_GROUP, Moment.BEFORE_REQUEST, Call(lambda: None))
    stalled.release()
    assert joins.struck.wait(PATIENCE)
    report = scene.finish()
    assert report == replace(NOTHING_WRONG, duplicated=report.duplicated)
    assert bool(report.duplicated) == bool(flaw)


@flawed_and_not("send_again")
def test_who_sends_again_what_may_be_committed_doubles_it(scene: Scene, flaw: str | None) -> None:
    lost: list[Armed] = []
    lose = Fault(api=Api.END_TXN, moment=Moment.BEFORE_ANSWER, action=BlackHole())
    # Transactions before the first labels hold positions only.
    first = Call(lambda: lost.append(scene.proxy.arm(lose)))
    begun = scene.proxy.arm(Fault(api=Api.PRODUCE, moment=Moment.BEFORE_REQUEST, action=first))
    scene.stage.produce(TEXTS)
    scene.start(flaw, KAFKA__GUARANTEE="exactly-once")
    assert begun.struck.wait(PATIENCE)
    assert lost[0].struck.wait(PATIENCE)
    scene.stage.wait_until_done()
    report = scene.finish()
    assert report == replace(NOTHING_WRONG, duplicated=report.duplicated)
    assert bool(report.duplicated) == bool(flaw)
