"""What one process counts of its work.

`Metrics` is updated once a chunk, which costs a fraction of a microsecond a message. Its snapshots
are plain data that can go through JSON from process to process. A process that starts again counts
from zero, which Prometheus recognises.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypedDict

import numpy as np

from worker.events.records import DeadLetter, ErrorKind, LabelledEvent
from worker.telemetry.catalogue import (
    ABANDONED,
    ANSWERS,
    BATCH,
    CAREFUL,
    CHUNK,
    DEAD_LETTERS,
    HIDDEN,
    LABELS,
    LAG,
    LATENCY,
    LOST,
    MESSAGES,
    MODEL,
    REBALANCES,
    RETRIES,
    SCORE,
    SKIPPED,
    START_TIME,
    STEP,
    TOKENS,
    TRUNCATED,
    UNLABELLED,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from worker.events.records import Outcome
    from worker.telemetry.catalogue import Definition

_LabelValues: TypeAlias = "tuple[str, ...]"


class Series(TypedDict):
    """One series of a metric.

    `labels` are the values of the metric's labels, without `process`. `values` is one number; for a
    histogram it is the count of each bucket by itself, not cumulated, then the sum of all values.
    """

    labels: list[str]
    values: list[float]


Snapshot: TypeAlias = dict[str, list[Series]]
"""The series of one process, by the name of their metric; JSON leaves them unchanged."""


@dataclass(frozen=True, slots=True)
class Status:
    """What is known about a process of this worker, which has a number from 0.

    `problem` is a sentence of ours that says why the process is not live or not ready; `metrics` is
    None until the process has reported some.
    """

    process: int
    live: bool
    ready: bool
    problem: str | None = None
    metrics: Snapshot | None = None


class ClassifierCounts(Protocol):
    """What a classifier counts of its own work, from when it was loaded."""

    duplicates: int
    memory_hits: int
    disk_hits: int
    computed: int
    truncated: int
    tokens: int
    tokenize_seconds: float
    infer_seconds: float

    @property
    def batch_sizes(self) -> Mapping[int, int]:
        """Return how many batches there were, by the number of their texts."""


class StreamState(Protocol):
    """What a transport counts of its own work, from when it began."""

    poll_seconds: float
    decode_seconds: float
    publish_seconds: float
    commit_seconds: float
    rebalances: int
    abandoned: int
    retries: int
    lost_to_retention: int
    refused: int

    @property
    def careful(self) -> Collection[tuple[str, int]]:
        """Return the partitions of which records go one by one."""

    @property
    def lag(self) -> Mapping[tuple[str, int], int]:
        """Return how many records are not done yet, by topic and partition."""

    @property
    def hidden(self) -> Mapping[tuple[str, int], int]:
        """Return how many records wait for an open transaction, by topic and partition."""


class Metrics:
    """The numbers of one process; one thread updates them, and any thread takes snapshots."""

    def __init__(self, model: str, digest: str, labels: Sequence[str]) -> None:
        """Begin to count for the model of a name and a digest; `labels` are in the model's order."""
        self._lock = threading.Lock()
        self._labels = tuple(labels)
        # Series whose labels are known beforehand begin with 0, since a rate needs a first value.
        self._numbers: dict[Definition, dict[_LabelValues, float]] = {
            START_TIME: {(): time.time()},
            MODEL: {(model, digest): 1},
            MESSAGES: {(): 0},
            LABELS: {(label,): 0 for label in labels},
            UNLABELLED: {(): 0},
            DEAD_LETTERS: {(kind.value,): 0 for kind in ErrorKind},
            SKIPPED: {(): 0},
        }
        self._scores = _Histogram(SCORE.bounds, len(labels))
        self._latency = _Histogram(LATENCY.bounds)
        self._chunks = _Histogram(CHUNK.bounds)
        self._batch_sizes: dict[int, int] = {}

    def chunk_completed(
        self, outcomes: Sequence[Outcome], timestamps: Sequence[int | None], now: float
    ) -> None:
        """Count a chunk whose outcomes are durable; an empty chunk changes nothing.

        `timestamps` are those of the records, in milliseconds since the epoch; a record without one
        has None or a number below 0. `now` is in seconds since the epoch.
        """
        if not outcomes:
            return
        results = [item.classification for item in outcomes if isinstance(item, LabelledEvent)]
        kinds = Counter(item.kind.value for item in outcomes if isinstance(item, DeadLetter))
        label_sets = Counter(result.labels for result in results)
        packed = b"".join(result.scores.packed for result in results)
        scores = np.frombuffer(packed, dtype=np.float32).astype(np.float64)
        stamps = np.array([stamp for stamp in timestamps if stamp is not None and stamp >= 0])
        # The clock of a producer may be ahead of ours, which would give a latency below 0.
        latencies = np.maximum(now - stamps / 1000, 0)
        with self._lock:
            self._count(MESSAGES, len(outcomes))
            self._count(UNLABELLED, label_sets[()])
            self._count(SKIPPED, len(outcomes) - len(results) - kinds.total())
            for labels, times in label_sets.items():
                for label in labels:
                    self._count(LABELS, times, label)
            for kind, letters in kinds.items():
                self._count(DEAD_LETTERS, letters, kind)
            self._scores.add(scores.reshape(-1, len(self._labels)))
            self._latency.add(latencies[:, np.newaxis])
            self._chunks.add(np.array([[len(outcomes)]]))

    def update(self, counts: ClassifierCounts, state: StreamState) -> None:
        """Take over what classifier and transport have counted; called by the thread that counts."""
        numbers: dict[Definition, dict[_LabelValues, float]] = {
            LOST: {(): state.lost_to_retention},
            LAG: _by_partition(state.lag),
            CAREFUL: {(): len(state.careful)},
            HIDDEN: _by_partition(state.hidden),
            STEP: {
                ("poll",): state.poll_seconds,
                ("decode",): state.decode_seconds,
                ("tokenize",): counts.tokenize_seconds,
                ("infer",): counts.infer_seconds,
                ("publish",): state.publish_seconds,
                ("commit",): state.commit_seconds,
            },
            ANSWERS: {
                ("duplicate",): counts.duplicates,
                ("memory",): counts.memory_hits,
                ("disk",): counts.disk_hits,
                ("computed",): counts.computed,
            },
            TOKENS: {(): counts.tokens},
            TRUNCATED: {(): counts.truncated},
            REBALANCES: {(): state.rebalances},
            ABANDONED: {(): state.abandoned},
            RETRIES: {(): state.retries},
        }
        batch_sizes = dict(counts.batch_sizes)
        with self._lock:
            self._numbers |= numbers
            # No outcome has this kind: the transport finds out only when it publishes.
            self._numbers[DEAD_LETTERS][ErrorKind.REFUSED.value,] = state.refused
            self._batch_sizes = batch_sizes

    def snapshot(self) -> Snapshot:
        """Return all numbers as they are now, for any thread."""
        with self._lock:
            series: Snapshot = {
                definition.name: [
                    Series(labels=list(labels), values=[number])
                    for labels, number in numbers.items()
                ]
                for definition, numbers in self._numbers.items()
            }
            series[SCORE.name] = [
                Series(labels=[label], values=values)
                for label, values in zip(self._labels, self._scores.values(), strict=True)
            ]
            for definition, histogram in ((LATENCY, self._latency), (CHUNK, self._chunks)):
                (values,) = histogram.values()
                series[definition.name] = [Series(labels=[], values=values)]
            batch_sizes = self._batch_sizes
        series[BATCH.name] = [Series(labels=[], values=_values_of(batch_sizes, BATCH.bounds))]
        return series

    def _count(self, definition: Definition, number: float, *labels: str) -> None:
        self._numbers[definition][labels] += number


class _Histogram:
    """The counts of buckets and the sums of values, a row for each series."""

    def __init__(self, bounds: Sequence[float], rows: int = 1) -> None:
        self._bounds = np.array(bounds)
        self._counts = np.zeros((rows, len(bounds) + 1), dtype=np.int64)
        self._sums = np.zeros(rows)

    def add(self, values: NDArray[np.float64 | np.int64]) -> None:
        """Count values; their shape is [values, rows]."""
        rows, buckets = self._counts.shape
        places = np.searchsorted(self._bounds, values) + buckets * np.arange(rows)
        counts = np.bincount(places.ravel(), minlength=rows * buckets)
        self._counts += counts.reshape(rows, buckets)
        self._sums += values.sum(axis=0)

    def values(self) -> list[list[float]]:
        """Return the values of each series: the counts of its buckets, then its sum."""
        return [
            [*counts, total]
            for counts, total in zip(self._counts.tolist(), self._sums.tolist(), strict=True)
        ]


def _values_of(sizes: Mapping[int, int], bounds: Sequence[float]) -> list[float]:
    """Return the values of a histogram; `sizes` has how often each size came."""
    counts = [0] * (len(bounds) + 1)
    for size, times in sizes.items():
        counts[bisect_left(bounds, size)] += times
    return [*counts, sum(size * times for size, times in sizes.items())]


def _by_partition(numbers: Mapping[tuple[str, int], int]) -> dict[_LabelValues, float]:
    return {(topic, str(partition)): number for (topic, partition), number in numbers.items()}
