"""The native engine beside onnxruntime, with every backend of this machine: speed, and how far they agree.

    python -m benchmarks.native [--texts chat.txt] [--rounds 25]

The built-in model on one thread. Batches of random tokens, full ones and those of a worker that keeps up,
round by round in turn; medians, and ratios within a round. Then all distinct texts, once with each
engine: how far logits differ, and on how many texts a label does.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.cores import take_core
from benchmarks.engine import in_turn, median_ratio, random_ids
from benchmarks.stream import texts_of
from worker.bench.machine import machine
from worker.defaults import TOKEN_BUDGET
from worker.inference.artifact import BUILT_IN_MODEL
from worker.inference.engine import Engine, every_engine, load_model
from worker.inference.tokens import TextTokenizer, cut_batches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SHAPES = [
    *((TOKEN_BUDGET // tokens, tokens) for tokens in (5, 8, 16, 32, 128)),
    *((texts, 6) for texts in (1, 4, 20)),
]


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the native engine beside onnxruntime.")
    parser.add_argument("--texts", type=Path, help="a message a line; default: made up")
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    take_core()
    print(machine())
    artifact = load_model(BUILT_IN_MODEL)
    *engines, reference = every_engine(artifact)
    names = [engine.description for engine in (*engines, reference)]
    print("\nus a text; how many times that onnxruntime takes")
    print("texts tokens", *(f"{name:>18}" for name in names))
    for texts, tokens in SHAPES:
        batch = random_ids(texts, tokens).tolist()
        calls = [partial(engine.run, batch) for engine in (*engines, reference)]
        rounds = in_turn(calls, options.rounds)
        times = [1e6 * median(column) / texts for column in zip(*rounds, strict=True)]
        ratios = [median_ratio(rounds, -1, number) for number in range(len(times))]
        cells = (f"{time:9.0f} ({ratio:.2f})" for time, ratio in zip(times, ratios, strict=True))
        print(f"{texts:5} {tokens:6}", *(f"{cell:>18}" for cell in cells), flush=True)
    messages = list(dict.fromkeys(texts_of(options.texts)))
    ids = [ids for ids, _ in TextTokenizer(artifact).encode(messages)]
    expected = logits_of(reference, ids)
    print(
        f"\n{len(ids):,} texts; how logits differ from onnxruntime's, and texts with other labels"
    )
    for engine in engines:
        found = logits_of(engine, ids)
        differences = np.abs(found - expected)
        thresholds = np.array(artifact.thresholds)
        changed = (labels(found, thresholds) != labels(expected, thresholds)).any(axis=1)
        print(
            f"{engine.description:14} median {np.median(differences):.1e}, "
            f"largest {differences.max():.2f}, other labels {changed.sum()} ({changed.mean():.3%})"
        )
    return 0


def logits_of(engine: Engine, ids: Sequence[list[int]]) -> NDArray[np.float32]:
    parts = [(indices, engine.run(batch)) for indices, batch in cut_batches(ids, TOKEN_BUDGET)]
    logits = np.empty((len(ids), parts[0][1].shape[1]), dtype=np.float32)
    for indices, part in parts:
        logits[indices] = part
    return logits


def labels(logits: NDArray[np.float32], thresholds: NDArray[np.float64]) -> NDArray[np.bool_]:
    scores: NDArray[np.float64] = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return scores >= thresholds


if __name__ == "__main__":
    sys.exit(main())
