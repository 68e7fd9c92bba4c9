"""What a process counts of its work, and what Prometheus sees of it.

The catalogue has every metric once. `Metrics` holds the numbers of one process and is updated once
a chunk: per message that costs a fraction of a microsecond. Its snapshots are JSON, to travel from
process to process; `families` renders those of all processes, each series with the label
`process`. A process that starts again counts from zero, which Prometheus recognises. No series
has a text, a key or a user in it.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias, TypedDict

import numpy as np
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)

from worker.events.records import DeadLetter, ErrorKind, LabelledEvent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from prometheus_client.core import Metric

    from worker.events.records import Outcome

_LabelValues: TypeAlias = "tuple[str, ...]"


# eq=False: a definition is itself, and a quick key.
@dataclass(frozen=True, slots=True, eq=False)
class Definition:
    """A metric: its name, and its labels beside `process`.

    `bounds` are a histogram's: the greatest value of each bucket, rising, but for the last bucket,
    which has none.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


CATALOGUE: Final[list[Definition]] = []


def _counter(name: str, text: str, *labels: str) -> Definition:
    CATALOGUE.append(Definition(name, "counter", text, labels))
    return CATALOGUE[-1]


def _gauge(name: str, text: str, *labels: str) -> Definition:
    CATALOGUE.append(Definition(name, "gauge", text, labels))
    return CATALOGUE[-1]


def _histogram(name: str, text: str, bounds: Sequence[float], *labels: str) -> Definition:
    floats = tuple(float(bound) for bound in bounds)
    CATALOGUE.append(Definition(name, "histogram", text, labels, floats))
    return CATALOGUE[-1]


# The process. Live and ready are what /healthz and /readyz tell, process by process.

# Worry when it is 0: the process is dead or hangs, and its partitions wait or move to others.
LIVE: Final = _gauge("worker_live", "1 while the process runs and its loop goes round.")
# Worry when it stays 0 for longer than a start or a rebalance takes; the log says why.
READY: Final = _gauge(
    "worker_ready", "1 while the process has its model, is in its group and reaches the brokers."
)
# Worry when it changes by itself: the process was started again.
START_TIME: Final = _gauge(
    "worker_start_time_seconds", "When the process started to count, in seconds since the epoch."
)
# Worry when processes differ after a roll-out: labels then depend on who gives them.
MODEL: Final = _gauge(
    "worker_model_info",
    "1, for the model in use; the digest has thresholds in it.",
    "name",
    "digest",
)

# What became of records. All of these are durable: an abandoned chunk counts when it is done.

# Everything else is measured against it. Worry when it stands still while the lag grows.
MESSAGES: Final = _counter(
    "worker_messages_total", "Records done: labelled, made dead letters, or skipped."
)
# A message can have several, or none. Worry when the shares shift: the chat has changed, or the
# model.
LABELS: Final = _counter("worker_labels_total", "Labels given, by label.", "label")
# Worry when its share of the messages rises: the model no longer knows what it reads.
UNLABELLED: Final = _counter(
    "worker_messages_without_label_total", "Messages of which no score reached its threshold."
)
# Of every label and every labelled message, given or not: the buckets tell how many more or fewer
# labels another threshold would give. Worry when scores gather at a threshold.
SCORE: Final = _histogram(
    "worker_score",
    "Scores of all labels, given or not, by label.",
    [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
    "label",
)
# Worry when it grows: whoever writes the records has changed their form. "engine" and "deadly" are
# about the model: look at once. "refused" is a message that was labelled, and is counted as such,
# but the brokers did not take the label: compare max.message.bytes of the topics.
DEAD_LETTERS: Final = _counter("worker_dead_letters_total", "Dead letters, by kind.", "kind")
# Worry when it grows though nobody asks for records to be skipped.
SKIPPED: Final = _counter(
    "worker_skipped_total", "Records without a value, or that ask for no label."
)
# Worry about every one: the topic deleted records before they were labelled.
LOST: Final = _counter(
    "worker_lost_to_retention_total", "Records that the topic deleted before they were read."
)

# How fast it goes.

# What users notice. Clocks of producers and the topic's timestamp type have their part in it. Worry
# when it passes what was promised.
LATENCY: Final = _histogram(
    "worker_latency_seconds",
    "From a record's timestamp to the acknowledgement of its outcome.",
    [
        *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
        *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
    ],
)
# Worry when it grows for longer than a peak of chat lasts: add processes.
LAG: Final = _gauge(
    "worker_lag_records", "Records not yet done, by partition.", "topic", "partition"
)
# Where the time goes; what is missing to a second a second is the rest of the loop. "poll" is
# waiting, so idle time. "infer" should lead under load. Worry when "publish" (send, and wait for
# acknowledgements) or "commit" does: the brokers are slow.
STEP: Final = _counter("worker_step_seconds_total", "Time spent, by step of the loop.", "step")
# Chunks adapt to what can be labelled in kafka.chunk_seconds. Worry when they are small while the
# lag grows: a fixed cost a chunk, such as a slow commit, then outweighs the work.
CHUNK: Final = _histogram(
    "worker_chunk_records", "Records of a chunk.", [2**power for power in range(14)]
)

# How hard the engine works.

# Worry when the share of "computed" rises: the cache is too small, off, or does not fit the chat.
ANSWERS: Final = _counter(
    "worker_answers_total",
    "Texts by where their answer came from: a duplicate in the chunk, a cache, or the engine.",
    "source",
)
# Divided by the answers with source "computed" it is the length of texts, which the time to label
# follows.
TOKENS: Final = _counter("worker_tokens_total", "Tokens that went through the engine.")
# Worry when most are of one text: chunks are too small, and the engine slow.
BATCH: Final = _histogram(
    "worker_batch_texts", "Texts of a batch.", [2**power for power in range(11)]
)
# Worry when it is more than a few: labels then speak of the beginning of messages.
TRUNCATED: Final = _counter(
    "worker_truncated_total", "Texts longer than the model's limit, of which it read the beginning."
)

# How well it gets on with the brokers.

# Some come with every start and stop of a member. Worry when they go on without.
REBALANCES: Final = _counter(
    "worker_rebalances_total", "Generations of the group that the process was in."
)
# They are done again: no label is lost, but work is. Worry when they go on: see the log.
ABANDONED: Final = _counter(
    "worker_abandoned_chunks_total", "Chunks that could not be published or committed."
)
# An outage brings one every few seconds. Worry when they go on while the brokers seem well: the log
# names the problem.
RETRIES: Final = _counter(
    "worker_retries_total",
    "What the brokers failed or refused to do, and was tried again: connect, read, publish, commit.",
)


class Series(TypedDict):
    """One series of a metric.

    `labels` are the values of its labels but `process`; `values` is one number, or, of a histogram,
    the count of each bucket by itself, then the sum of all values.
    """

    labels: list[str]
    values: list[float]


Snapshot: TypeAlias = dict[str, list[Series]]
"""The series of one process, by the name of their metric; goes through JSON unchanged."""


@dataclass(frozen=True, slots=True)
class Status:
    """What is known of a process of this worker, by its number from 0.

    `problem` is a sentence of ours that says why it is not live or not ready; `metrics` is None
    where the process has not told any.
    """

    process: int
    live: bool
    ready: bool
    problem: str | None = None
    metrics: Snapshot | None = None


class ClassifierCounts(Protocol):
    """What a classifier counts of its own work, since it was loaded."""

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
    """What a transport counts of its own work, since it began."""

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
    def lag(self) -> Mapping[tuple[str, int], int]:
        """Return the records not yet done, by topic and partition."""


class Metrics:
    """The numbers of one process: one thread updates them, any thread takes snapshots."""

    def __init__(self, model: str, digest: str, labels: Sequence[str]) -> None:
        """Begin to count for a model of that name and digest, with these labels in its order."""
        self._lock = threading.Lock()
        self._labels = tuple(labels)
        # What can be named beforehand is there from the start: a rate needs a first zero.
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
        """Count a chunk whose outcomes are durable; an empty one counts for nothing.

        `timestamps` are the records', in milliseconds since the epoch; None or below 0 is none.
        `now` is in seconds since the epoch.
        """
        if not outcomes:
            return
        results = [item.classification for item in outcomes if isinstance(item, LabelledEvent)]
        kinds = Counter(item.kind.value for item in outcomes if isinstance(item, DeadLetter))
        label_sets = Counter(result.labels for result in results)
        packed = b"".join(result.scores.packed for result in results)
        scores = np.frombuffer(packed, dtype=np.float32).astype(np.float64)
        stamps = np.array([stamp for stamp in timestamps if stamp is not None and stamp >= 0])
        # A producer's clock may be ahead of ours.
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
        """Take over what others count, as it stands now, from the thread that counts it."""
        numbers: dict[Definition, dict[_LabelValues, float]] = {
            LOST: {(): state.lost_to_retention},
            LAG: {(topic, str(number)): lag for (topic, number), lag in state.lag.items()},
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
            # The transport makes these after the outcome: no outcome has this kind.
            self._numbers[DEAD_LETTERS][ErrorKind.REFUSED.value,] = state.refused
            self._batch_sizes = batch_sizes

    def snapshot(self) -> Snapshot:
        """Return all numbers as they are now."""
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
    """Values by bucket, in one row for each series."""

    def __init__(self, bounds: Sequence[float], rows: int = 1) -> None:
        self._bounds = np.array(bounds)
        self._counts = np.zeros((rows, len(bounds) + 1), dtype=np.int64)
        self._sums = np.zeros(rows)

    def add(self, values: NDArray[np.float64 | np.int64]) -> None:
        """Count values, shape [values, rows]."""
        rows, buckets = self._counts.shape
        places = np.searchsorted(self._bounds, values) + buckets * np.arange(rows)
        counts = np.bincount(places.ravel(), minlength=rows * buckets)
        self._counts += counts.reshape(rows, buckets)
        self._sums += values.sum(axis=0)

    def values(self) -> list[list[float]]:
        """Return the values of each series."""
        return [
            [*counts, total]
            for counts, total in zip(self._counts.tolist(), self._sums.tolist(), strict=True)
        ]


def _values_of(sizes: Mapping[int, int], bounds: Sequence[float]) -> list[float]:
    """Return the values of a histogram from how often each size came."""
    counts = [0] * (len(bounds) + 1)
    for size, times in sizes.items():
        counts[bisect_left(bounds, size)] += times
    return [*counts, sum(size * times for size, times in sizes.items())]


def families(statuses: Sequence[Status]) -> Iterator[Metric]:
    """Yield every metric of the catalogue, with the series of all processes."""
    known = [
        (str(status.process), (status.metrics or {}) | _health_of(status)) for status in statuses
    ]
    for definition in CATALOGUE:
        yield _family(
            definition,
            [
                ([process, *series["labels"]], series["values"])
                for process, snapshot in known
                for series in snapshot.get(definition.name, ())
            ],
        )


def _health_of(status: Status) -> Snapshot:
    """Return what a process cannot tell of itself."""
    return {
        LIVE.name: [Series(labels=[], values=[int(status.live)])],
        READY.name: [Series(labels=[], values=[int(status.ready)])],
    }


def _family(definition: Definition, rows: Sequence[tuple[list[str], list[float]]]) -> Metric:
    labels = ("process", *definition.labels)
    if definition.kind == "histogram":
        histogram = HistogramMetricFamily(definition.name, definition.help, labels=labels)
        ends = [*(str(bound) for bound in definition.bounds), "+Inf"]
        for label_values, (*counts, total) in rows:
            buckets = list(zip(ends, accumulate(counts), strict=True))
            histogram.add_metric(label_values, buckets, total)
        return histogram
    make = CounterMetricFamily if definition.kind == "counter" else GaugeMetricFamily
    family = make(definition.name, definition.help, labels=labels)
    for label_values, (number,) in rows:
        family.add_metric(label_values, number)
    return family
