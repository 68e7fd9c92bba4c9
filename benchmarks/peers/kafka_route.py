"""Kafka to Kafka: loops, stream libraries and this worker on the same backlog, in turn.

A real broker on loopback has the other core; what reads and labels has one to itself.
"""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.cores import on_core
from benchmarks.peers.environments import (
    VARIABLES,
    NotMeasuredError,
    end_of,
    python_of,
    start,
)
from benchmarks.stream import PAUSE, bench_of, cpu_seconds, rate
from tests.kafka.broker import TIED_TO_US, missing

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from benchmarks.stream import Bench
    from tests.kafka.stage import Stage

BACKLOG = 20_000
# What is timed begins once so many labels are there, and ends with this part of the backlog, or
# after so many seconds.
FIRST, LAST_PART, SECONDS = 200, 0.95, 15.0
PATIENCE = 120.0
# A chunk of 2,048 must not be most of what is timed.
LEAST = 5_000


@dataclass(frozen=True)
class Contender:
    """A way from topic to topic: its module with a kind, its environment, and what it promises."""

    name: str
    module: str
    kind: str
    requirements: str | None
    promise: str


OURS = "worker run"
CONTENDERS = (
    Contender(
        "kafka-python and transformers, one by one",
        "kafka_loop",
        "each",
        "torch",
        "may lose: commits what is not acknowledged; no dead letters",
    ),
    Contender(
        "kafka-python and transformers, by polls",
        "kafka_loop",
        "polls",
        "torch",
        "at least once; no dead letters",
    ),
    Contender(
        "Quix Streams and this classifier",
        "quixstreams_app",
        "",
        "quixstreams",
        "at least once or exactly once; no dead letters",
    ),
    Contender(
        "faust-streaming and this classifier",
        "faust_app",
        "",
        "faust",
        "at least once, but a batch that fails is lost; no dead letters",
    ),
    Contender(OURS, "", "", None, "at least once or exactly once; dead letters with reasons"),
)


class Cost(NamedTuple):
    """Messages a second, and seconds of CPU a message."""

    rate: float
    cpu: float


@dataclass
class KafkaRoute:
    """What was measured, by name and round; `missed` says why something was not."""

    costs: dict[str, list[Cost]] = field(default_factory=dict)
    missed: dict[str, str] = field(default_factory=dict)

    def median(self, name: str) -> Cost:
        return Cost(*(statistics.median(column) for column in zip(*self.costs[name], strict=True)))

    def ours_faster(self, name: str) -> float:
        """Return how many times as fast this worker is, the median over the rounds."""
        pairs = zip(self.costs[OURS], self.costs[name], strict=True)
        return statistics.median(ours.rate / theirs.rate for ours, theirs in pairs)


def measure_kafka_route(folder: Path, texts: Sequence[str], core: int, rounds: int) -> KafkaRoute:
    """Measure all contenders with the models in a folder."""
    route = KafkaRoute()
    few = f"{len(texts):,} different messages are too few" if len(texts) < LEAST else None
    if reason := missing() or few:
        route.missed = {contender.name: reason for contender in CONTENDERS}
        return route
    with bench_of(texts) as bench:
        for number in range(1, rounds + 1):
            print(f"Kafka to Kafka, round {number} of {rounds}", file=sys.stderr, flush=True)
            for contender in CONTENDERS:
                if contender.name not in route.missed:
                    try:
                        cost = measure(bench, contender, folder, core)
                        route.costs.setdefault(contender.name, []).append(cost)
                    except NotMeasuredError as error:
                        route.missed[contender.name] = str(error)
                        route.costs.pop(contender.name, None)
    return route


def measure(bench: Bench, contender: Contender, models: Path, core: int) -> Cost:
    number = min(BACKLOG, len(bench.texts))
    with bench.stage() as stage:
        bench.produce(stage, number)
        with running(stage, contender, models, core) as (process, log):
            begin = reach(stage, process, log, FIRST, PATIENCE)
            if begin[0] < FIRST:
                raise end_of(log, f"it wrote fewer than {FIRST} labels in {PATIENCE:.0f} seconds")
            cpu = cpu_seconds(process.pid)
            end = reach(stage, process, log, LAST_PART * number, SECONDS)
            cpu = cpu_seconds(process.pid) - cpu
    return Cost(rate(begin, end), cpu / (end[0] - begin[0]))


@contextmanager
def running(
    stage: Stage, contender: Contender, models: Path, core: int
) -> Iterator[tuple[subprocess.Popen[Any], Path]]:
    """Start a contender on a core; gives its process and its log."""
    if contender.name == OURS:
        stage.environment = VARIABLES
        with on_core(core):
            worker = stage.worker(MODEL=str(models / "model"))
        # The stage ends it.
        yield worker.process, worker.log_path
        return
    path = stage.folder / f"{contender.module}.log"
    python, module = python_of(contender.requirements), f"benchmarks.peers.{contender.module}"
    topics = (stage.kafka.bootstrap, stage.input, stage.output, stage.group)
    command = (*TIED_TO_US, str(python), "-m", module, *topics, str(models), contender.kind)
    with path.open("wb") as log:
        process = start(command, core=core, folder=stage.folder, stdout=log, log=log)
    try:
        yield process, path
    finally:
        process.kill()
        process.wait()


def reach(
    stage: Stage, process: subprocess.Popen[Any], log: Path, labels: float, seconds: float
) -> tuple[int, float]:
    """Wait until so many labels are written or the time is over.

    Returns how many there are, and when that was.

    Raises:
        NotMeasuredError: the process has ended.

    """
    deadline = time.monotonic() + seconds
    while (done := written(stage)) < labels and time.monotonic() < deadline:
        if process.poll() is not None:
            raise end_of(log)
        time.sleep(PAUSE)
    return done, time.monotonic()


def written(stage: Stage) -> int:
    return sum(stage.kafka.ends(stage.output, "read_uncommitted").values())
