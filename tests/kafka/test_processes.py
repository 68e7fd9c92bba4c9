"""`worker run --processes N`: several processes work, are watched, and end as one."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import parser

from tests.kafka.broker import free_port, wait_until
from tests.kafka.deadly import KILLER
from tests.kafka.stage import Stage, WorkerProcess, header, place_of
from worker.cli.entry import main
from worker.run import supervisor
from worker.telemetry.metrics import Status

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.kafka.broker import Kafka
    from tests.kafka.proxy import Proxy

GUARANTEES = pytest.mark.parametrize("guarantee", ["at-least-once", "exactly-once"])
TEXTS = [f"message {number}" for number in range(200)]
PLACES = [(partition, offset) for partition in (0, 1) for offset in range(100)]

# Nothing that is asked here takes long.
REQUEST_SECONDS = 30

# So that nobody is taken for dead on a machine that is busy.
STEADY = {"KAFKA__SESSION_TIMEOUT_SECONDS": "30", "KAFKA__MAX_POLL_INTERVAL_SECONDS": "300"}


class Processes:
    """A worker of two processes, seen from outside."""

    def __init__(self, stage: Stage, **settings: str) -> None:
        self.parent: WorkerProcess = stage.worker(
            RUN__PROCESSES="2",
            **{"RUN__LISTEN": "127.0.0.1:0", "RUN__STOP_SECONDS": "60", **settings},
        )
        self._group = stage.group
        self._kafka = stage.kafka

    @property
    def address(self) -> str:
        self.parent.wait_for("listening")
        addresses = [e["address"] for e in self.parent.events() if e["event"] == "listening"]
        assert len(addresses) == 1
        return str(addresses[0])

    def get(self, path: str) -> tuple[int, str]:
        with closing(HTTPConnection(self.address, timeout=REQUEST_SECONDS)) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def is_ok(self, path: str) -> bool:
        """Return whether /healthz or /readyz answers with 200."""
        status, _ = self.get(path)
        assert status in {200, 503}
        return status == 200

    def health(self) -> list[dict[str, Any]]:
        """Return what /healthz says of each process."""
        processes: list[dict[str, Any]] = json.loads(self.get("/healthz")[1])["processes"]
        return processes

    def wait_until_ready(self) -> None:
        """Wait until all take part; they are live meanwhile."""

        def ready() -> bool:
            assert self.is_ok("/healthz")
            return self.is_ok("/readyz")

        wait_until(ready, "all processes to be ready")

    def wait_until_not_ready(self) -> None:
        wait_until(lambda: not self.is_ok("/readyz"), "a process that is not ready")

    def metric(self, name: str) -> list[dict[str, Any]]:
        """Return the series of a metric, each as its labels and its value."""
        families = parser.text_string_to_metric_families(self.get("/metrics")[1])
        samples = [sample for family in families for sample in family.samples]
        return [{**s.labels, "value": s.value} for s in samples if s.name == name]

    def messages(self) -> dict[str, float]:
        """Return how many messages each process has counted."""
        series = self.metric("worker_messages_total")
        return {each["process"]: each["value"] for each in series}

    def pids(self) -> dict[int, int]:
        """Return the processes that run, by number."""
        return children_of(self.parent.pid)

    def deaths(self) -> list[dict[str, Any]]:
        return [entry for entry in self.parent.events() if entry["event"] == "process died"]

    def members(self) -> list[str]:
        """Return the client ids of the group's members, as the broker knows them."""
        with self._kafka.admin() as admin:
            group = admin.describe_groups([self._group])[self._group]
        return sorted(member["client_id"] for member in group["members"])

    def wait_until_gone(self, pids: Mapping[int, int]) -> None:
        """Wait until processes have ended, and nobody is in the group."""
        wait_until(lambda: all(map(ended, pids.values())), "the processes to end")
        wait_until(lambda: not self.members(), "the group to be empty")


def children_of(pid: int) -> dict[int, int]:
    """Return the processes that a worker has started, by the number that each was given."""
    children = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
            if b"--child" in arguments and f"PPid:\t{pid}\n" in (folder / "status").read_text():
                number, _, _ = arguments[arguments.index(b"--child") + 1].partition(b":")
                children[int(number)] = int(folder.name)
    return children


def ended(pid: int) -> bool:
    """Return whether a process has ended, if nobody has asked how."""
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


@contextmanager
def paused(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if not ended(pid):
            os.kill(pid, signal.SIGCONT)


def places(stage: Stage) -> list[tuple[int, int]]:
    return sorted(map(place_of, stage.labels()))


# Work that is shared.


@pytest.mark.slow
@GUARANTEES
def test_the_processes_share_the_partitions_and_label_every_event_once(
    stage: Stage, guarantee: str
) -> None:
    processes = Processes(stage, KAFKA__GUARANTEE=guarantee, **STEADY)
    processes.wait_until_ready()

    def shared() -> bool:
        lag = processes.metric("worker_lag_records")
        return {(series["process"], series["partition"]) for series in lag} in (
            {("0", "0"), ("1", "1")},
            {("0", "1"), ("1", "0")},
        )

    wait_until(shared, "a partition for each process")
    assert processes.members() == ["worker-0-0", "worker-0-1"]
    stage.produce(TEXTS)
    stage.wait_until_done()
    wait_until(lambda: processes.messages() == {"0": 100, "1": 100}, "both to have counted")
    assert processes.parent.stop() == 0
    assert places(stage) == PLACES


@pytest.mark.slow
def test_one_address_answers_for_all_processes(stage: Stage) -> None:
    listen = f"127.0.0.1:{free_port()}"
    processes = Processes(stage, RUN__LISTEN=listen, **STEADY)
    processes.wait_until_ready()
    assert processes.address == listen
    for path, aspect in (("/healthz", "live"), ("/readyz", "ready")):
        status, body = processes.get(path)
        assert status == 200
        process = {"live": True, "ready": True, "problem": None}
        assert json.loads(body) == {
            aspect: True,
            "reason": None,
            "processes": [{"process": number, **process} for number in (0, 1)],
        }
    for name in ("worker_live", "worker_ready"):
        assert processes.metric(name) == [{"process": p, "value": 1} for p in ("0", "1")]
    assert processes.messages() == {"0": 0, "1": 0}
    (model, other) = processes.metric("worker_model_info")
    assert model["digest"] == other["digest"]


@pytest.mark.slow
def test_a_process_without_a_partition_is_ready_too(
    kafka: Kafka, topic_names: Iterator[str], tmp_path: Path
) -> None:
    with Stage(kafka, topic_names, tmp_path, partitions=1) as stage:
        stage.produce(TEXTS[:20])
        processes = Processes(stage)
        processes.wait_until_ready()
        wait_until(lambda: len(processes.members()) == 2, "both in the group")
        stage.wait_until_done()
        processes.wait_until_ready()
        assert processes.parent.stop() == 0
        assert places(stage) == [(0, offset) for offset in range(20)]


# Brokers that are away.


@pytest.mark.slow
def test_before_the_brokers_can_be_reached_the_processes_are_live_and_not_ready(
    proxied: tuple[Stage, Proxy],
) -> None:
    stage, proxy = proxied
    proxy.refuse()
    processes = Processes(stage)
    starting = {"not running yet", "not connected yet"}
    wait_until(
        lambda: starting.isdisjoint(process["problem"] for process in processes.health()),
        "both to miss the brokers",
    )
    assert None not in [process["problem"] for process in processes.health()]
    assert not processes.is_ok("/readyz")
    assert processes.is_ok("/healthz")
    proxy.accept()
    processes.wait_until_ready()
    assert processes.parent.stop() == 0


@pytest.mark.slow
@GUARANTEES
@pytest.mark.parametrize("how", ["black hole", "refused"])
def test_an_outage_ends_no_process_and_costs_no_label(
    proxied: tuple[Stage, Proxy], guarantee: str, how: str
) -> None:
    stage, proxy = proxied
    stage.produce(TEXTS[:100])
    processes = Processes(stage, KAFKA__GUARANTEE=guarantee)
    processes.wait_until_ready()
    stage.wait_until_done()
    before = processes.pids()
    stage.produce(TEXTS[100:])
    if how == "refused":
        proxy.refuse()
    else:
        proxy.black_hole()
    wait_until(
        lambda: not any(process["ready"] for process in processes.health()),
        "both to miss the brokers",
    )
    assert processes.is_ok("/healthz")
    if how == "refused":
        proxy.accept()
    else:
        proxy.heal()
    stage.wait_until_done()
    processes.wait_until_ready()
    assert processes.pids() == before
    assert processes.parent.stop() == 0
    assert sorted(set(places(stage))) == PLACES
    if guarantee == "exactly-once":
        assert len(stage.labels()) == len(PLACES)


# Processes that die.


@pytest.mark.slow
@GUARANTEES
def test_a_killed_process_is_started_again_and_nothing_is_lost(
    stage: Stage, guarantee: str
) -> None:
    stage.produce(TEXTS[:100])
    processes = Processes(stage, KAFKA__GUARANTEE=guarantee)
    processes.wait_until_ready()
    before = processes.pids()
    os.kill(before[0], signal.SIGKILL)
    processes.wait_until_not_ready()
    assert processes.is_ok("/healthz")
    stage.produce(TEXTS[100:])
    processes.wait_until_ready()
    stage.wait_until_done()
    after = processes.pids()
    assert after[0] != before[0]
    assert after[1] == before[1]
    (death,) = processes.deaths()
    assert (death["process"], death["exit_code"], death["times"]) == (0, -signal.SIGKILL, 1)
    assert processes.parent.stop() == 0
    assert sorted(set(places(stage))) == PLACES
    if guarantee == "exactly-once":
        assert len(stage.labels()) == len(PLACES)


@pytest.mark.slow
def test_a_process_that_ends_unasked_is_started_again_even_if_it_ended_well(stage: Stage) -> None:
    processes = Processes(stage)
    processes.wait_until_ready()
    before = processes.pids()
    os.kill(before[1], signal.SIGTERM)
    wait_until(lambda: len(processes.deaths()) == 1, "its end to be noticed")
    assert processes.deaths()[0]["exit_code"] == 0
    processes.wait_until_ready()
    assert processes.pids()[0] == before[0]
    assert processes.parent.stop() == 0


@pytest.mark.slow
@GUARANTEES
def test_a_message_that_kills_its_process_does_not_end_the_worker(
    stage: Stage, guarantee: str
) -> None:
    stage.produce([*TEXTS[:30], KILLER, *TEXTS[31:]])
    processes = Processes(
        stage,
        module="tests.kafka.deadly",
        KAFKA__GUARANTEE=guarantee,
        # A smaller chunk might end before that message, and the count of deaths begin anew.
        KAFKA__CHUNK_SECONDS="30",
    )
    stage.wait_until_done()
    (letter,) = stage.dead_letters()
    assert (place_of(letter), header(letter, "worker-kind")) == ((0, 15), "deadly")
    assert {death["exit_code"] for death in processes.deaths()} == {-signal.SIGKILL}
    processes.wait_until_ready()
    assert processes.parent.stop() == 0
    assert set(places(stage)) == {place for place in PLACES if place != (0, 15)}


# Processes that this one starts, as the parent that it then is.


@pytest.fixture
def arguments(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the arguments with which this process seems to have been started as a worker."""
    for name, value in (stage.settings | {"RUN__PROCESSES": "2"}).items():
        monkeypatch.setenv(f"WORKER_{name}", value)
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-P", "-m", "worker", "run"])
    return ["run"]


@pytest.fixture
def child(arguments: list[str]) -> Iterator[supervisor._ConsumerChild]:
    child = supervisor._ConsumerChild(0, arguments)
    yield child
    child.kill()


def test_a_process_that_the_system_does_not_start_is_started_later(
    child: supervisor._ConsumerChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", refuse)
        child.look_after()
    assert not child.running
    wait_until(lambda: is_ready(child), "the process to be ready")


def is_ready(child: supervisor._ConsumerChild) -> bool:
    child.look_after()
    supervisor._listen([child])
    return child.status().ready


@pytest.mark.slow
def test_a_process_that_dies_again_and_again_ends_the_worker_with_a_sentence(
    stage: Stage,
    arguments: list[str],
    model_copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(supervisor, "_DEATHS_IN_A_ROW", 2)
    monkeypatch.setenv("WORKER_MODEL", str(model_copy))
    (model_copy / "weights.bin").write_bytes(b"damaged")
    stage.produce(TEXTS)
    assert main(arguments) == 1
    *_, last = capfd.readouterr().err.splitlines()
    assert re.fullmatch(
        "worker: process [01] has died 2 times in a row; see what it says above", last
    )
    assert children_of(os.getpid()) == {}
    assert stage.labels() == stage.dead_letters() == []


def test_the_configuration_being_wrong_for_a_process_ends_the_worker_at_once(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    missing = tmp_path / "ca.pem"
    monkeypatch.setenv("WORKER_KAFKA__TLS__ENABLED", "true")
    monkeypatch.setenv("WORKER_KAFKA__TLS__CA", str(missing))
    assert main(arguments) == 2
    lines = capfd.readouterr().err.splitlines()
    assert any(f"kafka.tls.ca: {missing} is not a file of certificates" in line for line in lines)
    assert re.fullmatch("worker: process [01] cannot start; see what it says above", lines[-1])
    assert not any("process died" in line for line in lines)
    assert children_of(os.getpid()) == {}


@pytest.mark.slow
def test_a_process_that_hangs_is_not_live_and_is_again_when_it_goes_on(
    child: supervisor._ConsumerChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_until(lambda: is_ready(child), "the child to be ready")
    monkeypatch.setattr(supervisor, "_SILENT_SECONDS", 3)

    def silent() -> bool:
        supervisor._listen([child])
        return not child.status().live

    with paused(children_of(os.getpid())[0]):
        wait_until(silent, "the child to be silent")
        assert child.status() == Status(0, live=False, ready=False, problem="silent")
    wait_until(lambda: is_ready(child), "the child to speak again")


def test_a_process_that_never_reports_is_live_for_as_long_as_a_start_may_take(
    child: supervisor._ConsumerChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert child.status() == Status(0, live=True, ready=False, problem="not running yet")
    child.look_after()
    assert child.status() == Status(0, live=True, ready=False, problem="not running yet")
    monkeypatch.setattr(supervisor, "_SILENT_SECONDS", -1)
    assert child.status() == Status(0, live=False, ready=False, problem="not running yet")


def test_a_process_is_not_taken_from_the_current_folder_unless_its_parent_was(
    child: supervisor._ConsumerChild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "worker.py").write_text("raise SystemExit(2)")
    monkeypatch.chdir(tmp_path)
    wait_until(lambda: is_ready(child), "the child to be ready")


# Stopping.


@pytest.mark.slow
@GUARANTEES
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_when_asked_to_stop_all_commit_what_they_published_and_end(
    stage: Stage, guarantee: str, number: signal.Signals
) -> None:
    processes = Processes(stage, KAFKA__GUARANTEE=guarantee, KAFKA__CHUNK_SECONDS="0.01")
    processes.wait_until_ready()
    pids = processes.pids()
    assert sorted(pids) == [0, 1]
    stage.produce(TEXTS)
    processes.parent.process.send_signal(number)
    assert processes.parent.wait() == 0
    assert all(map(ended, pids.values()))
    processes.wait_until_gone(pids)
    assert len(stage.labels()) == sum(stage.kafka.committed(stage.group, stage.input).values())
    stage.worker(KAFKA__GUARANTEE=guarantee)
    stage.wait_until_done()
    assert places(stage) == PLACES


@pytest.mark.slow
def test_a_signal_to_parent_and_processes_alike_is_one_signal(stage: Stage) -> None:
    processes = Processes(stage)
    processes.wait_until_ready()
    pids = processes.pids()
    # As systemd does it.
    for pid in [*pids.values(), processes.parent.pid]:
        os.kill(pid, signal.SIGTERM)
    assert processes.parent.wait() == 0
    assert all(map(ended, pids.values()))


def test_it_can_be_stopped_before_its_processes_have_begun(stage: Stage) -> None:
    processes = Processes(stage)
    wait_until(lambda: len(processes.pids()) == 2, "two processes")
    pids = processes.pids()
    assert processes.parent.stop() == 0
    assert all(map(ended, pids.values()))


@pytest.mark.slow
def test_it_can_be_stopped_while_a_process_waits_to_be_started_again(stage: Stage) -> None:
    processes = Processes(stage)
    processes.wait_until_ready()
    os.kill(processes.pids()[0], signal.SIGKILL)
    wait_until(lambda: len(processes.deaths()) == 1, "its end to be noticed")
    assert processes.parent.stop() == 0


@pytest.mark.slow
def test_a_process_that_hangs_is_killed_when_the_worker_is_asked_to_stop(stage: Stage) -> None:
    processes = Processes(stage, RUN__STOP_SECONDS="0")
    processes.wait_until_ready()
    pids = processes.pids()
    with paused(pids[0]):
        assert processes.parent.stop() == 1
        assert all(map(ended, pids.values()))
    processes.parent.wait_for("process did not stop in time", process=0)


@pytest.mark.slow
@GUARANTEES
def test_processes_whose_parent_was_killed_stop_by_themselves(stage: Stage, guarantee: str) -> None:
    stage.produce(TEXTS)
    processes = Processes(stage, KAFKA__GUARANTEE=guarantee, KAFKA__CHUNK_SECONDS="0.01")
    processes.wait_until_ready()
    pids = processes.pids()
    processes.parent.kill()
    processes.wait_until_gone(pids)
    assert len(stage.labels()) == sum(stage.kafka.committed(stage.group, stage.input).values())


@pytest.mark.slow
def test_processes_that_have_not_begun_when_their_parent_is_killed_stop_too(stage: Stage) -> None:
    processes = Processes(stage)
    wait_until(lambda: len(processes.pids()) == 2, "two processes")
    pids = processes.pids()
    processes.parent.kill()
    processes.wait_until_gone(pids)
