"""How texts are best put into batches: of one length or of all, and how large.

    python -m benchmarks.batches [--texts chat.txt] [--rounds 5]

The built-in model's engine on one thread, texts that all differ, tokenized before. They come in
chunks of so many at hand, as a worker has them that is more or less behind. Batches of one length,
of 512 tokens at most, stand beside those that the worker cuts, in the order of lengths, with several
token budgets; round by round in turn, medians of the rounds.
"""

from __future__ import annotations

import argparse
import random
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.cores import take_core
from benchmarks.engine import in_turn, median_ratio
from benchmarks.stream import texts_of
from worker.bench.machine import machine
from worker.defaults import TOKEN_BUDGET
from worker.inference.artifact import BUILT_IN_MODEL
from worker.inference.engine import Engine, load_model, open_engine
from worker.inference.tokens import TextTokenizer, cut_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Way = Callable[[Sequence[list[int]]], Iterator[list[list[int]]]]

AT_HAND = (1, 5, 10, 20, 40, 80, 320, 2048)
BUDGETS = (64, 128, 256, 512, 1024)
LEAST = 640


def of_one_length(chunk: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    by_length: dict[int, list[list[int]]] = {}
    for ids in chunk:
        by_length.setdefault(len(ids), []).append(ids)
    for same in by_length.values():
        yield from of_all_lengths(same, TOKEN_BUDGET)


def of_all_lengths(chunk: Sequence[list[int]], budget: int) -> Iterator[list[list[int]]]:
    for _, batch in cut_batches(chunk, budget):
        yield batch


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure ways to put texts into batches.")
    parser.add_argument("--texts", type=Path, help="a message a line; default: made up")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    take_core()
    print(machine())
    artifact = load_model(BUILT_IN_MODEL)
    engine = open_engine(artifact)
    texts = list(dict.fromkeys(texts_of(options.texts)))
    random.Random(1).shuffle(texts)  # noqa: S311 - the same order each time
    tokens = [ids for ids, _ in TextTokenizer(artifact).encode(texts[: max(AT_HAND)])]
    print("\nus a message; of one length, then of all lengths with a budget of so many tokens")
    print("at hand  one length", *(f"{budget:6}" for budget in BUDGETS), "  one length over 512")
    ways: list[Way] = [
        of_one_length,
        *(partial(of_all_lengths, budget=budget) for budget in BUDGETS),
    ]
    for size in AT_HAND:
        chosen = tokens[: max(LEAST, size)]
        chunks = [chosen[begin : begin + size] for begin in range(0, len(chosen), size)]
        batches = [[batch for chunk in chunks for batch in way(chunk)] for way in ways]
        calls = [partial(run, engine, each) for each in batches]
        rounds = in_turn(calls, options.rounds)
        medians = [1e6 * median(column) / len(chosen) for column in zip(*rounds, strict=True)]
        one, *all_lengths = (f"{each:6.0f}" for each in medians)
        ratio = median_ratio(rounds, 0, 1 + BUDGETS.index(TOKEN_BUDGET))
        print(f"{size:7}  {one:>10}", *all_lengths, f"{ratio:10.2f}", flush=True)
    return 0


def run(engine: Engine, batches: Sequence[list[list[int]]]) -> None:
    for batch in batches:
        engine.run(batch)


if __name__ == "__main__":
    sys.exit(main())
