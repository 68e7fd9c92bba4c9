"""How fast `worker run` is, on a real broker of its own on loopback.

    python -m benchmarks.stream [--texts chat.txt] [--runs 3]

Three questions, each answered within one run: how much faster two processes are than one on the
same backlog; how soon a label can be read after its event was written, at a light load, with each
guarantee; and what a message costs whose answer is in the cache, step by step. The broker has the
same cores as the workers, and its share is in all figures. `--texts` has a message a line; left
out, those of the example chat are taken. `make benchmarks/stream` sets up what it needs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass
from itertools import count, cycle, islice
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from tests.kafka.broker import Cluster, missing, wait_until
from tests.kafka.health import LISTEN, metrics, wait_until_ready
from tests.kafka.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.kafka.stage import WorkerProcess

EXAMPLES = Path(__file__).parents[1] / "examples" / "chat.jsonl"
GUARANTEES = ("at-least-once", "exactly-once")
PARTITIONS = 4
BACKLOG = 20_000
CACHED_BACKLOG = 200_000
# Of a backlog, what is timed: starting and the last records are not.
FROM, TO = 0.2, 0.95
LIGHT_RATE = 20
LIGHT_SECONDS = 30
# What a user has, not what makes tests quick.
DEFAULTS = {
    f"KAFKA__{name}_SECONDS": seconds
    for name, seconds in {
        "SESSION_TIMEOUT": "15",
        "TRANSACTION_TIMEOUT": "15",
        "REQUEST_TIMEOUT": "10",
        "DEADLINE": "30",
        "MAX_POLL_INTERVAL": "300",
    }.items()
}


@dataclass(frozen=True)
class Bench:
    """A broker, texts, and a folder; each stage has topics of its own."""

    kafka: Cluster
    texts: Sequence[str]
    folder: Path
    names: Iterator[str]

    def stage(self) -> Stage:
        stage = Stage(self.kafka, self.names, self.folder, partitions=PARTITIONS)
        stage.settings |= DEFAULTS
        return stage

    def produce(self, stage: Stage, number: int) -> None:
        stage.produce(list(islice(cycle(self.texts), number)), linger_ms=50, batch_size=2**18)


def rate(stage: Stage, records: int) -> float:
    """Return the messages a second while a backlog is labelled by workers that were started."""

    def done() -> int:
        return sum(stage.kafka.committed(stage.group, stage.input).values())

    wait_until(lambda: done() >= FROM * records, "the first labels")
    before, began = done(), time.monotonic()
    wait_until(lambda: done() >= TO * records, "the last labels", 600)
    return (done() - before) / (time.monotonic() - began)


def rates_of_processes(bench: Bench, processes: int, guarantee: str) -> float:
    with bench.stage() as stage:
        bench.produce(stage, BACKLOG)
        stage.worker(RUN__PROCESSES=str(processes), KAFKA__GUARANTEE=guarantee)
        return rate(stage, BACKLOG)


def compare_processes(bench: Bench, runs: int) -> None:
    print(f"one and two processes, {BACKLOG} messages, no cache, medians of {runs}")
    for guarantee in GUARANTEES:
        pairs = [
            [rates_of_processes(bench, processes, guarantee) for processes in (1, 2)]
            for _ in range(runs)
        ]
        one, two = (statistics.median(rates) for rates in zip(*pairs, strict=True))
        ratio = statistics.median(two / one for one, two in pairs)
        print(f"  {guarantee:<14} {one:6.0f}/s  {two:6.0f}/s  ratio {ratio:.2f}")


def measure_latency(bench: Bench) -> None:
    print(f"from an event's time until its label is read, {LIGHT_RATE} messages a second")
    for guarantee in GUARANTEES:
        with bench.stage() as stage:
            worker = stage.worker(KAFKA__GUARANTEE=guarantee, **LISTEN)
            wait_until_ready(worker)
            seconds = sorted(latencies(bench, stage))
            p50, p99 = (seconds[int(len(seconds) * part)] for part in (0.5, 0.99))
            numbers = f"p50 {1000 * p50:5.0f} ms  p99 {1000 * p99:5.0f} ms"
            print(f"  {guarantee:<14} {numbers}  of {len(seconds)} messages")


def latencies(bench: Bench, stage: Stage) -> list[float]:
    """Write events at a light rate; returns how long each took until its label was read."""
    number = LIGHT_RATE * LIGHT_SECONDS

    def write() -> None:
        with closing(KafkaProducer(**bench.kafka.settings, acks="all")) as producer:
            for text in islice(cycle(bench.texts), number):
                producer.send(stage.input, json.dumps({"text": text}).encode())
                time.sleep(1 / LIGHT_RATE)

    reader = KafkaConsumer(**bench.kafka.settings, isolation_level="read_committed")
    with closing(reader):
        reader.assign([TopicPartition(stage.output, p) for p in range(PARTITIONS)])
        reader.seek_to_end()
        reader.poll(timeout_ms=100)
        writer = Thread(target=write)
        writer.start()
        seconds: list[float] = []
        while len(seconds) < number:
            polled = reader.poll(timeout_ms=1000)
            now = time.time()
            # A label carries its event's time.
            seconds += [now - r.timestamp / 1000 for part in polled.values() for r in part]
        writer.join()
    return seconds


def measure_cached(bench: Bench) -> None:
    print(f"a message whose answer is in the cache, {CACHED_BACKLOG} messages, one process")
    for guarantee in GUARANTEES:
        with bench.stage() as stage:
            stage.settings |= {
                "CACHE__ENABLED": "true",
                "CACHE__DIRECTORY": str(bench.folder / "cache" / guarantee),
            }
            bench.produce(stage, CACHED_BACKLOG)
            worker = stage.worker(KAFKA__GUARANTEE=guarantee, **LISTEN)
            speed = rate(stage, CACHED_BACKLOG)
            stage.wait_until_done()
            print(
                f"  {guarantee:<14} {speed:6.0f}/s  {1e6 / speed:.0f} us a message: {steps(worker)}"
            )


def steps(worker: WorkerProcess) -> str:
    """Return the time that a message takes in each step, and how many were computed."""
    seconds: dict[str, float] = defaultdict(float)
    for line in metrics(worker):
        name, _, value = line.rpartition(" ")
        if name.startswith(("worker_step_seconds_total", "worker_answers_total")):
            seconds[name.split('"')[-2]] += float(value)
    computed = seconds.pop("computed")
    for source in ("duplicate", "memory", "disk"):
        seconds.pop(source, None)
    each = ", ".join(f"{step} {1e6 * s / CACHED_BACKLOG:.1f}" for step, s in seconds.items())
    return f"{each} ({computed:.0f} computed)"


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure worker run on a broker of its own.")
    parser.add_argument("--texts", type=Path, help="a message a line; default: the example chat")
    parser.add_argument("--runs", type=int, default=3, help="of each comparison (3)")
    options = parser.parse_args()
    if reason := missing():
        print(reason, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as name, Cluster(Path(name) / "kafka") as kafka:
        names = (f"benchmark-{number}" for number in count())
        bench = Bench(kafka, texts_of(options.texts), Path(name), names)
        compare_processes(bench, options.runs)
        measure_latency(bench)
        measure_cached(bench)
    return 0


def texts_of(path: Path | None) -> list[str]:
    if path is not None:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line]
    texts = []
    for line in EXAMPLES.read_bytes().splitlines():
        try:
            texts.append(json.loads(line)["text"])
        except (ValueError, KeyError, TypeError):
            continue  # Some are broken on purpose.
    return [text for text in texts if isinstance(text, str)]


if __name__ == "__main__":
    sys.exit(main())
