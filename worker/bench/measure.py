"""What a model does on this machine, on one thread: its engine by batches, its classifier by texts."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from worker.bench.machine import machine
from worker.defaults import CHUNK_RECORDS, TOKEN_BUDGET
from worker.inference.classifier import Classifier
from worker.inference.engine import every_engine, open_engine
from worker.inference.tokens import TextTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from worker.inference.artifact import Artifact

_LENGTHS: Final = (4, 6, 8, 12, 16, 32, 64)
_BATCHES: Final = (1, 4, 16)
_ROUNDS: Final = 7
_WARM_UP: Final = 2
# Of the messages that engines are compared with.
_TOKENS: Final = 8
_ALONE: Final = 200


class BatchSpeed(NamedTuple):
    """Messages a second in batches of one shape, and the int8 operations of that, 10^9 a second."""

    tokens: int
    batch: int
    messages_per_second: float
    gops: float


class EngineSpeed(NamedTuple):
    """Messages of eight tokens a second by one engine: in full batches, and one at a time."""

    engine: str
    full_per_second: float
    alone_per_second: float


@dataclass(frozen=True, slots=True)
class Speed:
    """What was measured, on one thread.

    Texts go through the classifier one by one, then in chunks of 2,048: with nothing remembered
    between two, with a memory that is empty at first, and with one that knows them all.
    """

    machine: str
    model: str
    engines: Sequence[EngineSpeed]
    batches: Sequence[BatchSpeed]
    texts: int
    tokens_per_text: float
    alone_p50_ms: float
    alone_p99_ms: float
    without_memory_per_second: float
    with_memory_per_second: float
    hit_rate: float
    remembered_per_second: float


def measure_speed(artifact: Artifact, texts: Sequence[str]) -> Speed:
    """Measure a model on texts, in their order."""
    forgetful, mindful = Classifier(artifact, memory_entries=0), Classifier(artifact)
    pool = tokens_of(artifact, texts)
    distinct = list(dict.fromkeys(texts))[:_ALONE]
    alone = [1000 * _seconds(partial(forgetful.classify, [text])) for text in distinct]
    without = _per_second(forgetful, texts)
    first = _per_second(mindful, texts)
    hit_rate = mindful.counts.hit_rate
    return Speed(
        machine=machine(),
        model=artifact.manifest.name,
        engines=engine_speeds(artifact, pool),
        batches=batch_speeds(artifact, pool),
        texts=len(texts),
        tokens_per_text=pool.size / len(texts),
        alone_p50_ms=statistics.median(alone),
        alone_p99_ms=float(np.percentile(alone, 99)),
        without_memory_per_second=without,
        with_memory_per_second=first,
        hit_rate=hit_rate,
        remembered_per_second=_per_second(mindful, texts),
    )


def tokens_of(artifact: Artifact, texts: Sequence[str]) -> NDArray[np.int64]:
    """Return the token ids of texts, one text after another."""
    return np.concatenate([ids for ids, _ in TextTokenizer(artifact).encode(texts)])


def engine_speeds(artifact: Artifact, pool: NDArray[np.int64]) -> list[EngineSpeed]:
    """Return the speed of every engine that this machine has, measured in turn."""
    full = _batch_of(pool, TOKEN_BUDGET // _TOKENS, _TOKENS)
    engines = every_engine(artifact)
    rounds = [
        [
            (_seconds(partial(each.run, full)), _seconds(partial(each.run, full[:1])))
            for each in engines
        ]
        for _ in range(_WARM_UP + _ROUNDS)
    ]
    medians = np.median(rounds[_WARM_UP:], axis=0)
    return [
        EngineSpeed(engine.description, len(full) / of_full, 1 / alone)
        for engine, (of_full, alone) in zip(engines, medians.tolist(), strict=True)
    ]


def batch_speeds(artifact: Artifact, pool: NDArray[np.int64]) -> list[BatchSpeed]:
    """Return the speed of the engine for batches of many shapes, of the tokens of texts."""
    engine = open_engine(artifact)
    shape, limit = artifact.manifest.shape, artifact.manifest.max_tokens
    speeds = []
    for tokens in (length for length in _LENGTHS if length <= limit):
        for batch in sorted({*_BATCHES, max(1, TOKEN_BUDGET // tokens)}):
            ids = _batch_of(pool, batch, tokens)
            times = [_seconds(partial(engine.run, ids)) for _ in range(_WARM_UP + _ROUNDS)]
            seconds = statistics.median(times[_WARM_UP:])
            work = 2 * sum(r * d * c for r, d, c in shape.products(batch, tokens))
            speeds.append(BatchSpeed(tokens, batch, batch / seconds, work / seconds / 1e9))
    return speeds


def _batch_of(pool: NDArray[np.int64], batch: int, tokens: int) -> list[list[int]]:
    found: list[list[int]] = np.resize(pool, (batch, tokens)).tolist()
    return found


def _per_second(classifier: Classifier, texts: Sequence[str]) -> float:
    def all_of_them() -> None:
        for begin in range(0, len(texts), CHUNK_RECORDS):
            classifier.classify(texts[begin : begin + CHUNK_RECORDS])

    return len(texts) / _seconds(all_of_them)


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun
