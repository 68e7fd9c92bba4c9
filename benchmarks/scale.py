"""What a message costs as things grow: length, batch, known messages, partitions.

    python -m benchmarks.scale [--texts chat.txt] [--core-hour 0.04]

- the engine by tokens and batch;
- all of the way but the brokers (`worker.bench.chunk_costs`), by the share of messages that are known;
- the CPU of `worker run` by partitions, on a broker of its own, where all messages are known.

Each also as the price of a million messages, at a price for a core and hour. `benchmarks.caches` has
the size of caches, up to a million entries, `benchmarks.stream` processes.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.stream import FROM, TO, bench_of, caches, cpu_seconds, reach, texts_of
from tests.kafka.broker import missing
from worker.bench.chunk_costs import RecordBatchLabeller, events_of
from worker.bench.machine import machine
from worker.bench.measure import batch_speeds, tokens_of
from worker.inference.artifact import BUILT_IN_MODEL
from worker.inference.engine import load_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.stream import Bench
    from worker.inference.artifact import Artifact

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0)
CHUNK, CHUNKS = 1024, 4
PARTITIONS = (1, 4, 16, 64)
CACHED_BACKLOG = 100_000
RUNS = 3


def by_batch(artifact: Artifact, texts: Sequence[str], price: float) -> None:
    print("\nthe engine, in batches: us a message, and a million messages")
    for each in batch_speeds(artifact, tokens_of(artifact, texts)):
        micros = 1e6 / each.messages_per_second
        line = f"  {each.tokens:3} tokens {each.batch:4} at once {micros:8.0f} us"
        print(f"{line} {price * micros:10.4f}  {each.gops:6.0f} GOPS")


def by_share(artifact: Artifact, texts: Sequence[str], price: float) -> None:
    print(f"\nall but the brokers, chunks of {CHUNK}, by the share of known messages")
    distinct = list(dict.fromkeys(texts))
    rng = random.Random(1)  # noqa: S311 - the same choice each time
    for share in SHARES:
        labeller, known = RecordBatchLabeller(artifact), distinct[:CHUNK]
        labeller.label(events_of(known))
        fresh = iter(distinct[CHUNK:])
        seconds = []
        for _ in range(CHUNKS):
            new = [next(fresh) for _ in range(round((1 - share) * CHUNK))]
            chunk = [*new, *rng.choices(known, k=CHUNK - len(new))]
            rng.shuffle(chunk)
            events, begun = events_of(chunk), time.process_time()
            labeller.label(events)
            seconds.append(time.process_time() - begun)
        micros = 1e6 * statistics.median(seconds) / CHUNK
        print(f"  {share:4.0%} {micros:8.0f} us {price * micros:10.4f}", flush=True)


def by_partitions(bench: Bench, price: float) -> None:
    print(f"\nworker run, all known, by partitions: CPU, medians of {RUNS}")
    for partitions in PARTITIONS:
        micros = 1e6 * statistics.median(cached_cpu(bench, partitions) for _ in range(RUNS))
        print(f"  {partitions:3} {micros:8.0f} us {price * micros:10.4f}", flush=True)


def cached_cpu(bench: Bench, partitions: int) -> float:
    with bench.stage(partitions) as stage:
        bench.produce(stage, CACHED_BACKLOG)
        worker = stage.worker(**caches(stage))
        begin, cpu = reach(stage, FROM * CACHED_BACKLOG), cpu_seconds(worker.pid)
        end = reach(stage, TO * CACHED_BACKLOG)
        return (cpu_seconds(worker.pid) - cpu) / (end[0] - begin[0])


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what a message costs as things grow.")
    parser.add_argument("--texts", type=Path, help="a message a line; default: made up")
    parser.add_argument("--core-hour", type=float, default=0.04, help="a price (0.04)")
    options = parser.parse_args()
    # Of a million messages for each microsecond.
    price = options.core_hour / 3600
    artifact, texts = load_model(BUILT_IN_MODEL), texts_of(options.texts)
    print(machine())
    by_batch(artifact, texts, price)
    by_share(artifact, texts, price)
    if reason := missing():
        print(reason, file=sys.stderr)
        return 1
    with bench_of(texts[:2000]) as bench:
        by_partitions(bench, price)
    return 0


if __name__ == "__main__":
    sys.exit(main())
