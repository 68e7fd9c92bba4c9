"""How fast `worker run` is, on a real broker of its own on loopback.

    python -m benchmarks.stream [--texts chat.txt] [--runs 3]

Two questions, each answered within one run: how much faster two processes are than one on the same
backlog; and what a message costs whose answer is in the cache, step by step and beside a loop that
only consumes and produces. The broker has the same cores as the workers, and its share is in
all figures but those of CPU time. `--texts` has a message a line; left out, a chat in the shape of
a real one is made up. `make benchmark-stream` sets up what it needs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.kafka.broker import Cluster, missing
from tests.kafka.health import LISTEN, metrics
from tests.kafka.stage import QUICK, Stage
from worker.demo.chat import ChatStream
from worker.settings.schema import KafkaSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.kafka.stage import WorkerProcess

GUARANTEES = ("at-least-once", "exactly-once")
PARTITIONS = 4
BACKLOG = 40_000
CACHED_BACKLOG = 200_000
# Of a backlog, what is timed: starting and the last records are not.
FROM, TO = 0.2, 0.95
PAUSE = 0.2
# What a user has, where tests have what makes them quick.
DEFAULTS = {
    name: str(getattr(KafkaSettings(), name.removeprefix("KAFKA__").lower()))
    for name in QUICK
    if name.startswith("KAFKA__")
}


@dataclass(frozen=True)
class Bench:
    """A broker, texts, and a folder; each stage has topics of its own."""

    kafka: Cluster
    texts: Sequence[str]
    folder: Path
    names: Iterator[str]

    def stage(self, partitions: int = PARTITIONS) -> Stage:
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        stage = Stage(self.kafka, self.names, folder, partitions=partitions)
        stage.settings |= DEFAULTS
        return stage

    def produce(self, stage: Stage, number: int) -> None:
        stage.produce(list(islice(cycle(self.texts), number)), linger_ms=50, batch_size=2**18)


@contextmanager
def bench_of(texts: Sequence[str], properties: Mapping[str, str] | None = None) -> Iterator[Bench]:
    """Start a broker, with properties of its own if any; it ends with this."""
    with (
        tempfile.TemporaryDirectory() as name,
        Cluster(Path(name) / "kafka", properties=properties) as kafka,
    ):
        yield Bench(kafka, texts, Path(name), (f"benchmark-{number}" for number in count()))


def reach(stage: Stage, records: float) -> tuple[int, float]:
    """Wait until so many records are done; returns how many are, and when that was."""
    while (done := sum(stage.kafka.committed(stage.group, stage.input).values())) < records:
        for worker in stage.workers:
            if not worker.running:
                raise RuntimeError(worker.output)
        time.sleep(PAUSE)
    return done, time.monotonic()


def rate(begin: tuple[int, float], end: tuple[int, float]) -> float:
    """Return the messages a second between two moments."""
    return (end[0] - begin[0]) / (end[1] - begin[1])


def cost_of_processes(
    bench: Bench, processes: int, guarantee: str, partitions: int = PARTITIONS
) -> Cost:
    """Return what a message costs where nothing is remembered."""
    with bench.stage(partitions) as stage:
        bench.produce(stage, BACKLOG)
        worker = stage.worker(RUN__PROCESSES=str(processes), KAFKA__GUARANTEE=guarantee)
        begin, cpu = reach(stage, FROM * BACKLOG), cpu_seconds(worker.pid)
        end = reach(stage, TO * BACKLOG)
        cpu = cpu_seconds(worker.pid) - cpu
        return Cost(cpu / (end[0] - begin[0]), rate(begin, end), "")


def compare_processes(bench: Bench, runs: int) -> None:
    print(f"one and two processes, {BACKLOG} messages, no cache, medians of {runs}")
    for guarantee in GUARANTEES:
        pairs = [
            [cost_of_processes(bench, processes, guarantee) for processes in (1, 2)]
            for _ in range(runs)
        ]
        one, two = (statistics.median(each.rate for each in c) for c in zip(*pairs, strict=True))
        ratio, cpu = (
            statistics.median(getattr(two, what) / getattr(one, what) for one, two in pairs)
            for what in ("rate", "cpu")
        )
        print(f"  {guarantee:<14} {one:6.0f}/s  {two:6.0f}/s  ratio {ratio:.2f}, of CPU {cpu:.2f}")


def measure_cached(bench: Bench, runs: int) -> None:
    print(f"a message whose answer is in the cache, {CACHED_BACKLOG} messages, medians of {runs}")
    rounds = [
        [
            cached_cost(bench, "benchmarks.loop"),
            *(cached_cost(bench, "worker", g) for g in GUARANTEES),
        ]
        for _ in range(runs)
    ]
    bare = statistics.median(loop.cpu for loop, *_ in rounds)
    print(f"  a loop that does nothing else  {1e6 * bare:4.0f} us of CPU")
    for number, guarantee in enumerate(GUARANTEES, 1):
        costs = [each[number] for each in rounds]
        ratio = statistics.median(each[number].cpu / each[0].cpu for each in rounds)
        cpu, speed = (
            statistics.median(column)
            for column in zip(*((c.cpu, c.rate) for c in costs), strict=True)
        )
        print(
            f"  {guarantee:<14} {speed:6.0f}/s  {1e6 * cpu:4.0f} us of CPU, {ratio:.2f} times that"
        )
        print(f"    {costs[-1].steps}")


def caches(stage: Stage) -> dict[str, str]:
    """Return settings for caches that are empty at first."""
    return {"CACHE__ENABLED": "true", "CACHE__DIRECTORY": str(stage.folder / "cache")}


class Cost(NamedTuple):
    """What a message took: seconds of CPU, messages a second, and the steps in words."""

    cpu: float
    rate: float
    steps: str


def cached_cost(bench: Bench, module: str, guarantee: str = GUARANTEES[0]) -> Cost:
    with bench.stage() as stage:
        bench.produce(stage, CACHED_BACKLOG)
        listen = LISTEN if module == "worker" else {}
        worker = stage.worker(module, **caches(stage), **listen, KAFKA__GUARANTEE=guarantee)
        # By then each text has been there: partitions are not read at the same pace.
        begin = reach(stage, max(2 * len(bench.texts), FROM * CACHED_BACKLOG))
        cpu, before = cpu_seconds(worker.pid), counted(worker) if listen else {}
        end = reach(stage, TO * CACHED_BACKLOG)
        cpu = cpu_seconds(worker.pid) - cpu
        words = steps(before, counted(worker)) if listen else ""
        return Cost(cpu / (end[0] - begin[0]), rate(begin, end), words)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process, in all its threads and in the processes it has started."""
    folder = Path(f"/proc/{pid}")
    fields = (folder / "stat").read_text(encoding="ascii").rpartition(")")[2].split()
    children = (folder / "task" / str(pid) / "children").read_text(encoding="ascii").split()
    own = sum(int(ticks) for ticks in fields[11:13]) / os.sysconf("SC_CLK_TCK")
    return own + sum(cpu_seconds(int(child)) for child in children)


def counted(worker: WorkerProcess) -> dict[str, float]:
    """Return what a worker has counted: messages, seconds by step, answers by source."""
    numbers = {}
    for line in metrics(worker):
        series, _, value = line.rpartition(" ")
        if series.startswith("worker_messages_total"):
            numbers["messages"] = float(value)
        if series.startswith(("worker_step_seconds_total", "worker_answers_total")):
            numbers[series.split('"')[-2]] = float(value)
    return numbers


def steps(before: dict[str, float], after: dict[str, float]) -> str:
    """Return what a message costs by step, in microseconds, and how many were computed."""
    spent = {name: after[name] - before[name] for name in before}
    names = ("poll", "decode", "tokenize", "infer", "publish", "commit")
    each = ", ".join(f"{name} {1e6 * spent[name] / spent['messages']:.1f}" for name in names)
    return f"us a message: {each}; computed {spent['computed'] / spent['messages']:.1%}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure worker run on a broker of its own.")
    parser.add_argument("--texts", type=Path, help="a message a line; default: made up")
    parser.add_argument("--runs", type=int, default=3, help="of each comparison (3)")
    options = parser.parse_args()
    if reason := missing():
        print(reason, file=sys.stderr)
        return 1
    with bench_of(texts_of(options.texts)) as bench:
        compare_processes(bench, options.runs)
        measure_cached(bench, options.runs)
    return 0


def texts_of(path: Path | None) -> list[str]:
    if path is None:
        return list(islice(ChatStream(seed=1).texts(), BACKLOG))
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line]


if __name__ == "__main__":
    sys.exit(main())
