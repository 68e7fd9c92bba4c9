"""How soon a label is there after its event, at a tenth, half and four fifths of capacity.

    python -m benchmarks.latency [--texts chat.txt] [--model MODEL] [--seconds 20]

A real broker of its own on loopback, one worker with a core to itself and caches that are empty at
first; broker, sender and reader have the other cores. Capacity is what the worker makes of a backlog
in the same run. The load is open: events come at random moments (a Poisson process), whatever the
worker does. A label's time counts from the moment its event was due to its coming back to a reader,
which sees it after it was acknowledged, and with exactly once after its transaction. What brokers,
sender and reader take of that is seen at the same rate on a loop that only consumes and produces
(`benchmarks.loop`).

Capacity is also printed as a share of what the classifier alone makes of the same messages on the same
core: tokenizer, engine and caches, without Kafka.

Kafka 4 holds commits back for some milliseconds to write more of them at once; that is off here.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from contextlib import closing
from itertools import cycle, islice
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from benchmarks.cores import on_core, take_core
from benchmarks.stream import (
    BACKLOG,
    FROM,
    GUARANTEES,
    PARTITIONS,
    TO,
    bench_of,
    caches,
    rate,
    reach,
    texts_of,
)
from tests.kafka.broker import missing
from worker.bench.machine import machine
from worker.defaults import CHUNK_RECORDS as CHUNK
from worker.inference.classifier import Classifier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.stream import Bench
    from tests.kafka.stage import Stage

LOADS = (0.1, 0.5, 0.8)
RUNS = 3
# Labels of the first seconds do not count.
WARM_UP = 3.0
PATIENCE_MS = 5000
# What senders of many events wait, so that one request takes several.
LINGER_MS = 1
PERCENTILES = (50, 99, 99.9)
# The loop keeps no more than the first promise.
MEASURED = {GUARANTEES[0]: ("worker", "benchmarks.loop"), GUARANTEES[1]: ("worker",)}
AT_ONCE = {"group.coordinator.append.linger.ms": "0"}


def capacity(bench: Bench, core: int, settings: dict[str, str]) -> float:
    """Return the messages a second that a worker makes of a backlog."""
    with bench.stage() as stage:
        bench.produce(stage, BACKLOG)
        with on_core(core):
            stage.worker(**settings, **caches(stage))
        return rate(reach(stage, FROM * BACKLOG), reach(stage, TO * BACKLOG))


def alone(bench: Bench, core: int, model: Path | None) -> float:
    """Return the messages a second of the classifier alone, of the part of a backlog that counts."""
    texts = list(islice(cycle(bench.texts), BACKLOG))
    first, last = int(FROM * BACKLOG), int(TO * BACKLOG)
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder, on_core(core):
        classifier = Classifier.load(model, cache_directory=folder)
        for begin in range(0, first, CHUNK):
            classifier.classify(texts[begin : min(begin + CHUNK, first)])
        begun = time.perf_counter()
        for begin in range(first, last, CHUNK):
            classifier.classify(texts[begin : min(begin + CHUNK, last)])
        seconds = time.perf_counter() - begun
        classifier.close()
    return (last - first) / seconds


class Load(NamedTuple):
    """Events a second, and for how many seconds beside those of warming up."""

    rate: float
    seconds: float

    @property
    def events(self) -> int:
        return int(self.rate * (self.seconds + WARM_UP))


def latencies(
    bench: Bench, core: int, module: str, settings: dict[str, str], load: Load
) -> tuple[list[float], list[float]]:
    """Send events at a rate for some seconds.

    Returns the seconds that each label took, and those by which each event was sent too late.
    """
    with bench.stage() as stage:
        with on_core(core):
            worker = stage.worker(module, **settings, **caches(stage))
        # Each text once: who has seen them all would know all answers.
        texts = bench.texts[: load.events]
        late: list[float] = []
        sender = Thread(target=send, args=(bench, stage, texts, load.rate, late))
        reader = KafkaConsumer(
            **bench.kafka.settings, isolation_level="read_committed", fetch_max_wait_ms=50
        )
        with closing(reader):
            reader.assign([TopicPartition(stage.output, p) for p in range(PARTITIONS)])
            reader.seek_to_beginning()
            # Who has answered this one is ready.
            bench.produce(stage, 1)
            while not reader.poll(timeout_ms=PATIENCE_MS):
                if not worker.running:
                    raise RuntimeError(worker.output)
            sender.start()
            taken: list[float] = []
            while len(taken) < len(texts) and (polled := reader.poll(timeout_ms=PATIENCE_MS)):
                now = time.time()
                # A label carries its event's time.
                taken += [now - r.timestamp / 1000 for part in polled.values() for r in part]
        sender.join()
    if len(taken) < len(texts):
        raise RuntimeError(f"{len(texts) - len(taken)} of {len(texts)} labels did not come")
    counted = slice(int(load.rate * WARM_UP), None)
    return taken[counted], late[counted]


def send(bench: Bench, stage: Stage, texts: Sequence[str], rate: float, late: list[float]) -> None:
    """Send events when they are due, late ones at once, and note by how many seconds they were."""
    due = random.Random(1)  # noqa: S311 - the same moments each time
    with closing(
        KafkaProducer(**bench.kafka.settings, acks="all", linger_ms=LINGER_MS)
    ) as producer:
        producer.partitions_for(stage.input)
        at = time.time()
        for text in texts:
            at += due.expovariate(rate)
            time.sleep(max(0.0, at - time.time()))
            late.append(time.time() - at)
            value = json.dumps({"text": text}).encode()
            producer.send(stage.input, value, timestamp_ms=int(1000 * at))


def in_words(taken: Sequence[float], late: Sequence[float]) -> str:
    values = 1000 * np.percentile(taken, PERCENTILES)
    each = (f"p{p} {value:6.1f} ms" for p, value in zip(PERCENTILES, values, strict=True))
    return f"{'  '.join(each)}  sent late: p99 {1000 * np.percentile(late, 99):6.1f} ms"


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure latency under an open load.")
    parser.add_argument("--texts", type=Path, help="a message a line; default: made up")
    parser.add_argument("--model", type=Path, help="a model folder; default: the built-in model")
    parser.add_argument("--seconds", type=float, default=20, help="of each load (20)")
    options = parser.parse_args()
    if reason := missing():
        print(reason, file=sys.stderr)
        return 1
    print(machine())
    core = take_core()
    # Threads that read and write must not wait long for each other.
    sys.setswitchinterval(0.0005)
    with bench_of(texts_of(options.texts), AT_ONCE) as bench:
        for guarantee, modules in MEASURED.items():
            settings = {"KAFKA__GUARANTEE": guarantee}
            if options.model:
                settings["MODEL"] = str(options.model.resolve())
            pairs = [
                (capacity(bench, core, settings), alone(bench, core, options.model))
                for _ in range(RUNS)
            ]
            most = statistics.median(through for through, _ in pairs)
            share = statistics.median(through / without for through, without in pairs)
            print(f"{guarantee}: {most:,.0f} messages/s, {share:.2f} of the classifier alone")
            for part in LOADS:
                load = Load(part * most, options.seconds)
                print(f"  {part:4.0%} of that, {load.rate:5,.0f}/s")
                for module in modules:
                    measured = latencies(bench, core, module, settings, load)
                    print(f"    {module:16}  {in_words(*measured)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
