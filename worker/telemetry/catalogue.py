"""The catalogue of metrics: each one once, with what it says and when to worry.

The comment above a metric is for operators: it says what the metric is good for, and which values
are a reason to act. No metric has a text, a key or a user id in its labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence


# With eq=False a definition equals itself alone, and is a quick key of dicts.
@dataclass(frozen=True, slots=True, eq=False)
class Definition:
    """A metric: its name, its help text, and its labels beside `process`.

    `bounds` belong to histograms: they are the greatest value of each bucket, in rising order. The
    last bucket has no bound and is left out.
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


# The process. Live and ready are what /healthz and /readyz report, for each process by itself.

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
# Worry when processes differ after a roll-out: labels then depend on the process.
MODEL: Final = _gauge(
    "worker_model_info",
    "1, for the model in use; the digest has thresholds in it.",
    "name",
    "digest",
)

# What became of records. Records count when their outcome is durable, so those of an abandoned chunk
# count only once.

# The other metrics are measured against this one. Worry when it stands still while the lag grows.
MESSAGES: Final = _counter(
    "worker_messages_total", "Records done: labelled, made dead letters, or skipped."
)
# A message can have several labels, or none. Worry when their shares shift: the chat has changed, or
# the model has.
LABELS: Final = _counter("worker_labels_total", "Labels given, by label.", "label")
# Worry when its share of the messages rises: the model no longer understands the chat.
UNLABELLED: Final = _counter(
    "worker_messages_without_label_total", "Messages of which no score reached its threshold."
)
# Every labelled message counts once for every label of the model. The buckets show how many more or
# fewer labels another threshold would give. Worry when scores gather at a threshold.
SCORE: Final = _histogram(
    "worker_score",
    "Scores of all labels, given or not, by label.",
    [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
    "label",
)
# Worry when it grows: whoever writes the records has changed their form. The kinds "engine" and
# "deadly" are about the model: look at once. A message of the kind "refused" was labelled, and counts
# as labelled, but the brokers refused the label: compare max.message.bytes of the topics.
DEAD_LETTERS: Final = _counter("worker_dead_letters_total", "Dead letters, by kind.", "kind")
# Worry when it grows though nobody asks for records to be skipped.
SKIPPED: Final = _counter(
    "worker_skipped_total", "Records without a value, or that ask for no label."
)
# Worry about every single one: the topic deleted records before they were labelled.
LOST: Final = _counter(
    "worker_lost_to_retention_total", "Records that the topic deleted before they were read."
)

# How fast it goes.

# This is the delay that users notice. It depends on the clocks of producers and on the timestamp type
# of the topic, too. Worry when it exceeds what was promised.
LATENCY: Final = _histogram(
    "worker_latency_seconds",
    "From a record's timestamp to the acknowledgement of its outcome.",
    [
        *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
        *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
    ],
)
# Worry when it grows for longer than a peak of chat lasts: more processes are needed.
LAG: Final = _gauge(
    "worker_lag_records", "Records not yet done, by partition.", "topic", "partition"
)
# Worry when it stays: a producer has left a transaction open, and what was sent behind it is not
# labelled before that ends or times out. The log names partition and offset.
HIDDEN: Final = _gauge(
    "worker_hidden_records",
    "Records behind a transaction that is open, by partition.",
    "topic",
    "partition",
)
# Worry when it stays above 0: a message kills processes, and is being looked for. The log names the
# partition, and the message becomes a dead letter of the kind "deadly".
CAREFUL: Final = _gauge(
    "worker_careful_partitions",
    "Partitions of which records go one by one, since processes have died there.",
)
# The rates of all steps add up to less than a second a second; what is missing is the rest of the
# loop. "poll" is waiting for records, so it is idle time. Under load "infer" should be the largest.
# Worry when "publish" (to send, and to wait for acknowledgements) or "commit" is: the brokers are
# slow.
STEP: Final = _counter("worker_step_seconds_total", "Time spent, by step of the loop.", "step")
# Chunks adapt to how many records can be labelled in kafka.chunk_seconds. Worry when they are small
# while the lag grows: a fixed cost of each chunk, such as a slow commit, then outweighs the work.
CHUNK: Final = _histogram(
    "worker_chunk_records", "Records of a chunk.", [2**power for power in range(14)]
)

# How hard the engine works.

# Worry when the share of "computed" rises: the cache is off or too small, or the chat has fewer
# repeats.
ANSWERS: Final = _counter(
    "worker_answers_total",
    "Texts by where their answer came from: a duplicate in the chunk, a cache, or the engine.",
    "source",
)
# Divided by the answers whose source is "computed", this is the mean length of texts, to which the
# time of the engine is proportional.
TOKENS: Final = _counter("worker_tokens_total", "Tokens that went through the engine.")
# Worry when most batches have one text: chunks are too small, and the engine is slow.
BATCH: Final = _histogram(
    "worker_batch_texts", "Texts of a batch.", [2**power for power in range(11)]
)
# Worry when it is more than a few: such labels are about the beginning of a message only.
TRUNCATED: Final = _counter(
    "worker_truncated_total", "Texts longer than the model's limit, of which it read the beginning."
)

# How well it gets on with the brokers.

# Every start and stop of a member brings some. Worry when they go on without.
REBALANCES: Final = _counter(
    "worker_rebalances_total", "Generations of the group that the process was in."
)
# Abandoned chunks are done again: no label is lost, but work is. Worry when they go on; the log says
# why.
ABANDONED: Final = _counter(
    "worker_abandoned_chunks_total", "Chunks that could not be published or committed."
)
# An outage brings a retry every few seconds. Worry when they go on while the brokers seem well; the
# log names the problem.
RETRIES: Final = _counter(
    "worker_retries_total",
    "What the brokers failed or refused to do, and was tried again: connect, read, publish, commit.",
)
