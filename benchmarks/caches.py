"""What remembering is worth and what it costs, level by level.

    python -m benchmarks.caches [--texts chat.txt] [--rounds 5]

Four questions, each with tables of its own:

1. the share of messages whose answer is there, for `worker.inference.cache.MemoryCache` and for other
   policies, by size, on the chat and on a longer one that is made up, where large sizes matter;
2. what an entry of the table takes in memory, and what hits, misses and inserts take on each level,
   beside the work that a hit saves;
3. what two processes on one disk cache lose to each other, and what they gain: beside each alone,
   and beside both at once on a folder each;
4. what a full disk cache does: size, what it forgets, cost, and whether labels stay right.

Times are of CPU, medians over the rounds, since others may use the same cores; where processes
compete, the time on the clock is printed too. Bytes are those by which a process has grown. `--texts`
has a message a line; left out, a chat in the shape of a real one is made up.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from benchmarks.policies import TABLES, compare_policies
from worker.bench.machine import machine
from worker.defaults import DISK_BYTES, MEMORY_ENTRIES, TOKEN_BUDGET
from worker.demo.chat import ChatStream
from worker.inference.artifact import BUILT_IN_MODEL
from worker.inference.cache import DiskCache, text_key, tokens_key
from worker.inference.classifier import Classifier
from worker.inference.engine import load_model, open_engine
from worker.inference.tokens import TextTokenizer, cut_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from multiprocessing.queues import SimpleQueue
    from multiprocessing.synchronize import Barrier

    from benchmarks.policies import Table

CHAT, LONG_CHAT = 40_000, 400_000
SIZES = (100, 1000, 3000, 10_000, 30_000, 100_000, MEMORY_ENTRIES, 1_000_000)
# From these sizes on the long chat shows a difference.
LARGE_SIZES = SIZES[2:]
MEASURED_IN_MEMORY = ("MemoryCache", "two generations", "LRU")
# As for seven labels: scores, and before them in memory a byte.
SCORES, ANSWER = 28, 29
CHUNK = 1000
CHUNKS = {1: 300, 100: 3000, CHUNK: 5000}
FILLED = 200_000
COMPUTED, CHECKED = 2048, 3000
BOUND = 4 * 2**20
PAUSE = 0.001
Item = TypeVar("Item")


def cut(items: Sequence[Item], size: int = CHUNK) -> Iterator[Sequence[Item]]:
    return (items[begin : begin + size] for begin in range(0, len(items), size))


def key_of(number: int) -> bytes:
    return text_key(str(number))


def cpu(
    call: Callable[[], object], of: int, clock: Callable[[], float] = time.thread_time
) -> float:
    """Return the CPU time for each of so many, in microseconds; by default of this thread alone."""
    begun = clock()
    call()
    return 1e6 * (clock() - begun) / of


def medians(rows: Iterable[Sequence[float]]) -> list[float]:
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def ids_keys(tokenizer: TextTokenizer, texts: Sequence[str]) -> Iterator[bytes]:
    return (tokens_key(b"model", tokens.ids) for tokens in tokenizer.encode(texts))


def keys_of(
    texts: Sequence[str], make: Callable[[Sequence[str]], Iterable[bytes]]
) -> Sequence[bytes]:
    """Return a key for each text; equal texts have the same object, which the table finds sooner."""
    different = list(dict.fromkeys(texts))
    keys = dict(zip(different, make(different), strict=True))
    return [keys[text] for text in texts]


def measure_tables() -> None:
    print("\na table in memory, each second entry being asked for again soon; us of each")
    print(f"{'':22}  entries  bytes an entry  insert    hit   miss  slowest 1,000 inserts, ms")
    for name in MEASURED_IN_MEMORY:
        for entries in (30_000, 1_000_000):
            # A process for each, whose memory is not yet full of holes.
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, spawn) as process:
                cost = process.submit(table_cost, name, entries).result()
            print(
                f"{name:22}{entries:9,}{cost.size:16.0f}{cost.insert:8.2f}{cost.hit:7.2f}"
                f"{cost.miss:7.2f}{cost.slowest:27.1f}"
            )


class TableCost(NamedTuple):
    """Bytes of an entry; microseconds; the longest thousand inserts, in milliseconds."""

    size: float
    insert: float
    hit: float
    miss: float
    slowest: float


def table_cost(name: str, entries: int) -> TableCost:
    # Small ones are measured as several, so that their memory shows.
    tables = [TABLES[name](entries) for _ in range(1_000_000 // entries)]
    before = resident_bytes()
    times = [each for table in tables for each in inserts(table, 2 * entries)]
    size = (resident_bytes() - before) / entries / len(tables)
    late = random.Random(1).sample(range(2 * entries - entries // 4, 2 * entries), entries // 8)  # noqa: S311 - no secret
    there, not_there = [key_of(number) for number in late], [key_of(-number) for number in late]
    return TableCost(
        size,
        statistics.median(times),
        cpu(lambda: [tables[0].get(key) for key in there], len(there)),
        cpu(lambda: [tables[0].get(key) for key in not_there], len(not_there)),
        max(times) * CHUNK / 1000,
    )


def inserts(table: Table, number: int) -> Iterator[float]:
    """Insert new entries, and ask for half of them; yields the microseconds of an insert."""
    for numbers in cut(range(number)):
        items = [(key_of(number), number.to_bytes(ANSWER, "big")) for number in numbers]
        yield cpu(partial(insert, table, items), len(items))
        for again in numbers[::2]:
            table.get(key_of(again))


def insert(table: Table, items: Iterable[tuple[bytes, bytes]]) -> None:
    for key, value in items:
        table.put(key, value)


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def measure_work(texts: Sequence[str], rounds: int) -> None:
    """Print what a text takes that is not remembered, step by step."""
    artifact = load_model(BUILT_IN_MODEL)
    tokenizer, engine = TextTokenizer(artifact), open_engine(artifact)
    chosen = list(dict.fromkeys(texts))[:COMPUTED]
    ids = [tokens.ids for tokens in tokenizer.encode(chosen)]
    batches = [token_ids for _, token_ids in cut_batches(ids, TOKEN_BUDGET)]
    steps: list[Callable[[], object]] = [
        lambda: [text_key(text) for text in chosen],
        lambda: tokenizer.encode(chosen),
        lambda: [tokens_key(b"model", each) for each in ids],
        lambda: [engine.run(token_ids) for token_ids in batches],
    ]
    # The tokenizer has threads of its own.
    rows = [[cpu(step, len(chosen), time.process_time) for step in steps] for _ in range(rounds)]
    text, tokens, token, computing = medians(rows)
    print("\nus a different text, without any cache")
    print(f"key of the text {text:.1f}, token ids {tokens:.1f}, their key {token:.1f}, ", end="")
    print(f"engine {computing:.0f}")


def put(cache: DiskCache, keys: Sequence[bytes]) -> None:
    """Write entries and wait until they can be read."""
    cache.put_many({key: key + bytes(SCORES - len(key)) for key in keys})
    while not cache.get_many(keys[-1:]):
        if cache.writes_skipped:
            raise RuntimeError("the disk cache could not write")
        time.sleep(PAUSE)


def writing_seconds() -> float:
    """Return the CPU time of the thread that writes."""
    (thread,) = (each for each in threading.enumerate() if each.name == "cache")
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident or 0))


def measure_disk(rounds: int) -> None:
    print("\na disk cache, us an entry")
    print("  entries  in chunks of   insert     hit    miss")
    for filled in (0, FILLED):
        with tempfile.TemporaryDirectory() as folder:
            cache = DiskCache(Path(folder), DISK_BYTES)
            old = [key_of(number) for number in range(filled)]
            for keys in cut(old):
                put(cache, keys)
            for size, number in CHUNKS.items():
                rows = [disk_cost(cache, old, size, number, seed) for seed in range(rounds)]
                insert, hit, miss = medians(rows)
                print(f"{filled:9,}{size:14,}{insert:9.1f}{hit:8.1f}{miss:8.1f}")
            cache.close()


def disk_cost(
    cache: DiskCache, old: Sequence[bytes], size: int, number: int, seed: int
) -> list[float]:
    new = [text_key(f"{size} {seed} {each}") for each in range(number)]
    missing = [text_key(f"{size} {seed} {-each}") for each in range(1, number + 1)]
    begun = writing_seconds()
    for keys in cut(new, size):
        put(cache, keys)
    insert = 1e6 * (writing_seconds() - begun) / number
    known = random.Random(seed).sample([*old, *new], number)  # noqa: S311 - no secret
    return [
        insert,
        cpu(lambda: [cache.get_many(keys) for keys in cut(known, size)], number),
        cpu(lambda: [cache.get_many(keys) for keys in cut(missing, size)], number),
    ]


class Done(NamedTuple):
    """Seconds that a process took for a message, and what it did in all."""

    clock: float
    cpu: float
    computed: int
    from_disk: int
    skipped: int


def cache_alone(folder: Path, texts: Sequence[str], together: Barrier) -> Done:
    """Look up and insert as fast as can be, nothing being computed; counts what others wrote."""
    cache, written, others = DiskCache(folder, DISK_BYTES), set[bytes](), 0
    keys = [text_key(text) for text in texts]
    together.wait()
    clock, used = time.perf_counter(), time.process_time()
    for chunk in cut(keys):
        unique = set(chunk)
        found = cache.get_many(unique).keys()
        others += len(found - written)
        cache.put_many({key: bytes(SCORES) for key in unique - found})
        written |= unique - found
    cache.close()
    clock, used = time.perf_counter() - clock, time.process_time() - used
    done = len(texts)
    return Done(clock / done, used / done, len(written), others, cache.writes_skipped)


def classifier(folder: Path, texts: Sequence[str], together: Barrier) -> Done:
    """Label a chat; counts hits on disk, alone those of other texts with the same token ids."""
    disk = DiskCache(folder, DISK_BYTES)
    model = Classifier(load_model(BUILT_IN_MODEL), disk)
    together.wait()
    clock, used = time.perf_counter(), time.process_time()
    for chunk in cut(texts):
        model.classify(chunk)
    model.close()
    clock, used = time.perf_counter() - clock, time.process_time() - used
    done, counts = len(texts), model.counts
    return Done(clock / done, used / done, counts.computed, counts.disk_hits, disk.writes_skipped)


# What processes do at once, and with how many messages each.
JOBS: dict[str, tuple[Callable[[Path, Sequence[str], Barrier], Done], int]] = {
    "cache alone": (cache_alone, 18_000),
    "classifier": (classifier, 4000),
}


def run_job(
    job: str, folder: Path, texts: Sequence[str], together: Barrier, results: SimpleQueue[Done]
) -> None:
    results.put(JOBS[job][0](folder, texts, together))


def at_once(job: str, shares: Sequence[Sequence[str]], *, one_folder: bool) -> list[float]:
    """Run a process for each share, on new folders; returns the means of what they did."""
    spawn = multiprocessing.get_context("spawn")
    together, results = spawn.Barrier(len(shares)), spawn.SimpleQueue()
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / ("one" if one_folder else str(n)) for n in range(len(shares))]
        processes = [
            spawn.Process(target=run_job, args=(job, folder, share, together, results))
            for folder, share in zip(folders, shares, strict=True)
        ]
        for process in processes:
            process.start()
        done = [results.get() for _ in processes]
        for process in processes:
            process.join()
    return [statistics.mean(column) for column in zip(*done, strict=True)]


def measure_processes(texts: Sequence[str], rounds: int) -> None:
    print(
        "\ntwo processes, each with half of a chat; the second row has what cores cost, not caches"
    )
    print(f"{'':31}messages/s  us of CPU  not found  found on disk  writes skipped")
    for job, (_, size) in JOBS.items():
        shares = [texts[: 2 * size : 2], texts[1 : 2 * size : 2]]
        rows = [
            (
                medians(at_once(job, [share], one_folder=True) for share in shares),
                at_once(job, shares, one_folder=False),
                at_once(job, shares, one_folder=True),
            )
            for _ in range(rounds)
        ]
        for place, name in enumerate(("one alone", "both, a folder each", "both, on one folder")):
            clock, used, computed, found, skipped = medians(row[place] for row in rows)
            print(
                f"{job:12}{name:19}{1 / clock:10,.0f}{1e6 * used:11.1f}{computed:11,.0f}"
                f"{found:15,.0f}{skipped:16,.0f}"
            )
        speed = statistics.median(apart[0] / one[0] for _, apart, one in rows)
        more = statistics.median(one[1] / apart[1] for _, apart, one in rows)
        print(
            f"{'':12}one folder: {speed:.2f} times the speed, {more:.2f} times the CPU of a folder each"
        )


def measure_bound() -> None:
    print(f"\na disk cache of {BOUND / 2**20:.0f} MiB, filled in chunks of {CHUNK:,}")
    print("   inserted  us an insert  folder, MiB  at most  there  of the last 10,000  wrong")
    with tempfile.TemporaryDirectory() as name:
        folder, most = Path(name), 0
        cache, keys = DiskCache(folder, BOUND), [key_of(number) for number in range(60_000)]
        for begin in range(0, len(keys), 10_000):
            begun = writing_seconds()
            for chunk in cut(keys[begin : begin + 10_000]):
                put(cache, chunk)
                most = max(most, size := size_of(folder))
            spent = 1e6 * (writing_seconds() - begun) / 10_000
            found = cache.get_many(keys)
            of_last = len(found.keys() & set(keys[begin : begin + 10_000]))
            wrong = sum(value[: len(key)] != key for key, value in found.items())
            print(
                f"{begin + 10_000:11,}{spent:14.1f}{size / 2**20:13.2f}"
                f"{most / 2**20:9.2f}{len(found):7,}{of_last:20,}{wrong:7}"
            )
        cache.close()
        print(f"   {size_of(folder) / 2**20:.2f} MiB when closed")


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def check_labels(texts: Sequence[str]) -> None:
    """Label a chat twice with a disk cache that is far too small, and without any."""
    artifact = load_model(BUILT_IN_MODEL)
    expected = Classifier(artifact, memory_entries=0).classify(texts)
    with tempfile.TemporaryDirectory() as folder:
        small = Classifier(artifact, DiskCache(Path(folder), 2**18), memory_entries=0)
        labels = [
            label for _ in range(2) for chunk in cut(texts) for label in small.classify(chunk)
        ]
        small.close()
    wrong = sum(label != right for label, right in zip(labels, [*expected, *expected], strict=True))
    print(f"   {len(labels):,} labels with one of 256 KiB: {small.counts.disk_hits:,} ", end="")
    print(f"from the disk, {small.counts.computed:,} computed, {wrong} other than without")


def texts_of(path: Path | None) -> list[str]:
    if path is None:
        return list(islice(ChatStream(seed=1).texts(), CHAT))
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line]


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what remembering is worth, and costs.")
    parser.add_argument("--texts", type=Path, help="a message a line; default: made up")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(machine())
    texts, long = texts_of(options.texts), list(islice(ChatStream(seed=2).texts(), LONG_CHAT))
    tokenizer = TextTokenizer(load_model(BUILT_IN_MODEL))
    for name, chat, sizes in (
        ("the chat", texts, SIZES),
        ("a long chat, made up", long, LARGE_SIZES),
    ):
        compare_policies(f"{name}, by text", keys_of(chat, partial(map, text_key)), sizes)
        by_ids = keys_of(chat, partial(ids_keys, tokenizer))
        compare_policies(f"{name}, by token ids", by_ids, sizes)
    measure_tables()
    measure_work(texts, options.rounds)
    measure_disk(options.rounds)
    measure_processes(texts, options.rounds)
    measure_bound()
    check_labels(texts[:CHECKED])
    return 0


if __name__ == "__main__":
    sys.exit(main())
