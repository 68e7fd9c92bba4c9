"""Metrics are named by the conventions of Prometheus, exact, shown of all processes, and private."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest, parser
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics import parser as openmetrics_parser

from tests.classifications import classified
from worker.events.records import (
    DeadLetter,
    ErrorKind,
    Event,
    LabelledEvent,
    Outcome,
    Record,
    Skipped,
    TopicPlace,
)
from worker.telemetry import catalogue
from worker.telemetry.catalogue import CATALOGUE, Definition
from worker.telemetry.exposition import families
from worker.telemetry.metrics import Metrics, Snapshot, Status

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from prometheus_client.core import Metric, Sample

LABELS = ("joy", "anger")
RECORD = Record(b"secret value", TopicPlace("chat", 3, 4))
NOW = 1_700_000_000.0


def labelled(*labels: str, joy: float = 0.0, anger: float = 0.0) -> LabelledEvent:
    event = Event(RECORD, "secret id", "secret text", {"user": '"secret user"'})
    return LabelledEvent(event, classified({"joy": joy, "anger": anger}, *labels))


def letter(kind: ErrorKind) -> DeadLetter:
    return DeadLetter(RECORD, kind, "the record is not a JSON object")


@dataclass
class Counts:
    """Counts as a classifier has them."""

    duplicates: int = 0
    memory_hits: int = 0
    disk_hits: int = 0
    computed: int = 0
    truncated: int = 0
    tokens: int = 0
    tokenize_seconds: float = 0.0
    infer_seconds: float = 0.0
    batch_sizes: dict[int, int] = field(default_factory=dict)


@dataclass
class State:
    """Counts as a transport has them."""

    poll_seconds: float = 0.0
    decode_seconds: float = 0.0
    publish_seconds: float = 0.0
    commit_seconds: float = 0.0
    rebalances: int = 0
    abandoned: int = 0
    retries: int = 0
    lost_to_retention: int = 0
    refused: int = 0
    careful: Collection[tuple[str, int]] = ()
    lag: Mapping[tuple[str, int], int] = field(default_factory=dict)
    hidden: Mapping[tuple[str, int], int] = field(default_factory=dict)


class Exposition:
    """What Prometheus is shown of some processes."""

    def __init__(self, *statuses: Status) -> None:
        self.families = list(families(statuses))
        self.samples = [sample for family in self.families for sample in family.samples]

    def collect(self) -> list[Metric]:
        return self.families

    def values(self, name: str, *by: str) -> dict[tuple[str, ...], float]:
        """Return the values of all samples of that name, by some labels."""
        found = [sample for sample in self.samples if sample.name == name]
        values = {tuple(sample.labels[label] for label in by): sample.value for sample in found}
        assert len(values) == len(found)
        return values

    def value(self, name: str, /, **labels: str) -> float:
        (value,) = (
            sample.value
            for sample in self.samples
            if sample.name == name and sample.labels == {"process": "0", **labels}
        )
        return float(value)


def exposition(metrics: Metrics) -> Exposition:
    return Exposition(Status(0, live=True, ready=True, metrics=metrics.snapshot()))


def as_read(shown: Exposition) -> list[Metric]:
    """Return what Prometheus reads, by the parser of OpenMetrics, which is the stricter one."""
    text = openmetrics.generate_latest(shown).decode()  # type: ignore[no-untyped-call]  # prometheus_client has no types here
    return list(openmetrics_parser.text_string_to_metric_families(text))  # type: ignore[no-untyped-call]  # prometheus_client has no types here


def parts(samples: Iterable[Sample]) -> list[tuple[object, ...]]:
    return sorted((sample.name, sorted(sample.labels.items()), sample.value) for sample in samples)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("emotion", "0123456789abcdef", LABELS)


def worked() -> Metrics:
    """Return metrics that have a series for everything."""
    metrics = Metrics("emotion", "0123456789abcdef", LABELS)
    outcomes: list[Outcome] = [
        labelled("joy", joy=0.9),
        letter(ErrorKind.NOT_UTF8),
        Skipped(RECORD),
    ]
    metrics.chunk_completed(outcomes, [1, 2, 3], NOW)
    metrics.update(Counts(batch_sizes={1: 1}), State(lag={("chat", 0): 5}, hidden={("chat", 0): 0}))
    return metrics


# The catalogue.


def test_the_catalogue_is_complete_and_has_every_metric_once() -> None:
    defined = [value for value in vars(catalogue).values() if isinstance(value, Definition)]
    assert defined == CATALOGUE
    assert len({definition.name for definition in CATALOGUE}) == len(CATALOGUE)


@pytest.mark.parametrize("definition", CATALOGUE, ids=lambda definition: definition.name)
def test_metrics_are_named_and_explained_by_the_conventions(definition: Definition) -> None:
    assert re.fullmatch(r"worker(_[a-z]+)+", definition.name)
    assert not re.search(r"milli|_ms|minutes|_kb|percent|_(count|sum|bucket)$", definition.name)
    assert (definition.kind == "counter") == definition.name.endswith("_total")
    assert (definition.kind == "histogram") == bool(definition.bounds)
    assert list(definition.bounds) == sorted(set(definition.bounds))
    assert re.fullmatch(r"[0-9A-Z].*\.", definition.help)
    assert all(re.fullmatch(r"[a-z]+", label) for label in definition.labels)
    assert not {"process", "le"} & set(definition.labels)


def test_every_metric_of_the_catalogue_is_shown_with_its_kind_help_and_series() -> None:
    shown = exposition(worked())
    found = [(family.name, family.type, family.documentation) for family in shown.families]
    assert found == [
        (definition.name.removesuffix("_total"), definition.kind, definition.help)
        for definition in CATALOGUE
    ]
    assert all(family.samples for family in shown.families)
    assert all("process" in sample.labels for sample in shown.samples)


def test_openmetrics_says_all_that() -> None:
    shown = exposition(worked())
    assert as_read(shown) == shown.families


def test_the_text_format_says_all_that() -> None:
    shown = exposition(worked())
    text = generate_latest(shown).decode()
    read = parser.text_string_to_metric_families(text)
    assert parts(sample for family in read for sample in family.samples) == parts(shown.samples)
    for definition in CATALOGUE:
        assert f"# HELP {definition.name} {definition.help}\n" in text
        assert f"# TYPE {definition.name} {definition.kind}\n" in text


# Chunks.


def test_what_can_be_named_beforehand_is_zero_from_the_start(metrics: Metrics) -> None:
    start = exposition(metrics)
    assert start.values("worker_messages_total") == {(): 0}
    assert start.values("worker_labels_total", "label") == {("joy",): 0, ("anger",): 0}
    kinds = start.values("worker_dead_letters_total", "kind")
    assert kinds == {(kind.value,): 0 for kind in ErrorKind}
    assert start.value("worker_score_count", label="joy") == 0
    assert start.value("worker_latency_seconds_count") == 0


def test_a_chunk_counts_by_outcome(metrics: Metrics) -> None:
    outcomes: list[Outcome] = [
        labelled("joy"),
        letter(ErrorKind.NOT_JSON),
        labelled("joy", "anger"),
        labelled(),
        Skipped(RECORD),
        letter(ErrorKind.ENGINE),
        letter(ErrorKind.NOT_JSON),
    ]
    metrics.chunk_completed(outcomes, [None] * len(outcomes), NOW)
    after = exposition(metrics)
    assert after.value("worker_messages_total") == 7
    assert after.value("worker_labels_total", label="joy") == 2
    assert after.value("worker_labels_total", label="anger") == 1
    assert after.value("worker_messages_without_label_total") == 1
    assert after.value("worker_dead_letters_total", kind="not-json") == 2
    assert after.value("worker_dead_letters_total", kind="engine") == 1
    assert after.value("worker_skipped_total") == 1
    assert after.value("worker_chunk_records_sum") == 7


def test_an_empty_chunk_counts_for_nothing(metrics: Metrics) -> None:
    before = metrics.snapshot()
    metrics.chunk_completed([], [], NOW)
    assert metrics.snapshot() == before


def test_a_chunk_without_labels_and_timestamps_is_counted_too(metrics: Metrics) -> None:
    metrics.chunk_completed([letter(ErrorKind.NOT_UTF8)], [None], NOW)
    after = exposition(metrics)
    assert after.value("worker_messages_total") == 1
    assert after.value("worker_chunk_records_count") == 1
    assert after.value("worker_score_count", label="joy") == 0
    assert after.value("worker_latency_seconds_count") == 0


def test_scores_of_all_labels_are_counted_each_in_the_bucket_it_is_not_above(
    metrics: Metrics,
) -> None:
    outcomes = [labelled("joy", joy=joy, anger=0.05) for joy in (0.0, 0.5, 0.50001, 1.0)]
    metrics.chunk_completed(outcomes, [None] * 4, NOW)
    after = exposition(metrics)
    joy = {le: after.value("worker_score_bucket", label="joy", le=le) for le in ("0.4", "0.5")}
    assert joy == {"0.4": 1, "0.5": 2}
    assert after.value("worker_score_bucket", label="joy", le="0.6") == 3
    assert after.value("worker_score_bucket", label="joy", le="1.0") == 4
    assert after.value("worker_score_sum", label="joy") == pytest.approx(2.00001)
    assert after.value("worker_score_bucket", label="anger", le="0.1") == 4
    assert after.value("worker_score_sum", label="anger") == pytest.approx(0.2)


def test_latency_is_the_age_of_records_in_seconds(metrics: Metrics) -> None:
    ages_ms = [1, 250, 251, 3_600_000]
    stamps = [int(NOW * 1000) - age for age in ages_ms]
    metrics.chunk_completed([labelled()] * 4, stamps, NOW)
    after = exposition(metrics)
    assert after.value("worker_latency_seconds_bucket", le="0.0025") == 1
    assert after.value("worker_latency_seconds_bucket", le="0.5") == 3
    assert after.value("worker_latency_seconds_bucket", le="600.0") == 3
    assert after.value("worker_latency_seconds_bucket", le="+Inf") == 4
    assert after.value("worker_latency_seconds_sum") == pytest.approx(3600.502)


def test_records_without_a_timestamp_have_no_latency(metrics: Metrics) -> None:
    metrics.chunk_completed([labelled()] * 3, [None, -1, 0], NOW)
    after = exposition(metrics)
    assert after.value("worker_latency_seconds_count") == 1
    assert after.value("worker_latency_seconds_sum") == NOW


def test_a_clock_that_is_ahead_gives_no_negative_latency(metrics: Metrics) -> None:
    metrics.chunk_completed([labelled()], [int(NOW * 1000) + 5000], NOW)
    after = exposition(metrics)
    assert after.value("worker_latency_seconds_bucket", le="0.001") == 1
    assert after.value("worker_latency_seconds_sum") == 0


SCORES = st.floats(0, 1, width=32)
OUTCOMES: st.SearchStrategy[Outcome] = st.one_of(
    st.builds(
        lambda given, joy, anger: labelled(*sorted(given), joy=joy, anger=anger),
        st.sets(st.sampled_from(LABELS)),
        SCORES,
        SCORES,
    ),
    st.builds(letter, st.sampled_from(ErrorKind)),
    st.just(Skipped(RECORD)),
)
STAMPS = st.none() | st.integers(-1, 2 * int(NOW * 1000))
CHUNKS = st.lists(st.lists(st.tuples(OUTCOMES, STAMPS), max_size=20), max_size=6)


def counted(chunks: Sequence[Sequence[tuple[Outcome, int | None]]]) -> Metrics:
    metrics = Metrics("emotion", "0123456789abcdef", LABELS)
    for chunk in chunks:
        metrics.chunk_completed([o for o, _ in chunk], [stamp for _, stamp in chunk], NOW)
    return metrics


@given(CHUNKS)
def test_all_counts_add_up_to_the_messages(
    chunks: list[list[tuple[Outcome, int | None]]],
) -> None:
    after = exposition(counted(chunks))
    records = [record for chunk in chunks for record in chunk]
    results = [outcome for outcome, _ in records if isinstance(outcome, LabelledEvent)]
    messages = after.value("worker_messages_total")
    letters = sum(after.values("worker_dead_letters_total", "kind").values())
    assert messages == len(records)
    assert messages == len(results) + letters + after.value("worker_skipped_total")
    assert after.value("worker_chunk_records_sum") == messages
    assert after.value("worker_chunk_records_count") == sum(map(bool, chunks))
    stamps = [stamp for _, stamp in records if stamp is not None and stamp >= 0]
    assert after.value("worker_latency_seconds_count") == len(stamps)
    for label in LABELS:
        assert after.value("worker_score_count", label=label) == len(results)
        given = sum(label in result.classification.labels for result in results)
        assert after.value("worker_labels_total", label=label) == given


@given(CHUNKS)
def test_only_the_size_of_chunks_depends_on_how_messages_are_cut_into_chunks(
    chunks: list[list[tuple[Outcome, int | None]]],
) -> None:
    whole = exposition(counted([[record for chunk in chunks for record in chunk]]))
    apart = exposition(counted(chunks))
    for one, other in zip(whole.samples, apart.samples, strict=True):
        assert (one.name, one.labels) == (other.name, other.labels)
        if not one.name.startswith(("worker_chunk_records", "worker_start_time")):
            assert one.value == pytest.approx(other.value)


# What others count.


def test_what_others_count_is_taken_over(metrics: Metrics) -> None:
    counts = Counts(1, 2, 3, 4, truncated=5, tokens=6, tokenize_seconds=0.5, infer_seconds=1.5)
    state = State(
        0.25, 0.125, 2.5, 0.75, rebalances=7, abandoned=8, retries=10, lost_to_retention=9
    )
    metrics.update(counts, state)
    metrics.update(counts, state)
    after = exposition(metrics)
    assert after.values("worker_answers_total", "source") == {
        ("duplicate",): 1,
        ("memory",): 2,
        ("disk",): 3,
        ("computed",): 4,
    }
    assert after.values("worker_step_seconds_total", "step") == {
        ("poll",): 0.25,
        ("decode",): 0.125,
        ("tokenize",): 0.5,
        ("infer",): 1.5,
        ("publish",): 2.5,
        ("commit",): 0.75,
    }
    assert after.value("worker_truncated_total") == 5
    assert after.value("worker_tokens_total") == 6
    assert after.value("worker_rebalances_total") == 7
    assert after.value("worker_abandoned_chunks_total") == 8
    assert after.value("worker_retries_total") == 10
    assert after.value("worker_lost_to_retention_total") == 9


def test_labels_that_the_brokers_refuse_are_dead_letters_of_a_kind(metrics: Metrics) -> None:
    metrics.chunk_completed([letter(ErrorKind.DEADLY)], [None], NOW)
    metrics.update(Counts(), State(refused=2))
    metrics.chunk_completed([letter(ErrorKind.DEADLY)], [None], NOW)
    after = exposition(metrics)
    assert after.value("worker_dead_letters_total", kind="refused") == 2
    assert after.value("worker_dead_letters_total", kind="deadly") == 2


def test_hidden_records_are_those_of_each_partition(metrics: Metrics) -> None:
    metrics.update(Counts(), State(hidden={("chat", 0): 5, ("chat", 1): 0}))
    hidden = exposition(metrics).values("worker_hidden_records", "topic", "partition")
    assert hidden == {("chat", "0"): 5, ("chat", "1"): 0}


def test_lag_is_of_the_partitions_that_are_ours_now(metrics: Metrics) -> None:
    metrics.update(Counts(), State(lag={("chat", 0): 5, ("chat", 1): 6}))
    metrics.update(Counts(), State(lag={("chat", 1): 4, ("shouts", 0): 0}))
    lag = exposition(metrics).values("worker_lag_records", "topic", "partition")
    assert lag == {("chat", "1"): 4, ("shouts", "0"): 0}


# Sums stay below 2**53, because Prometheus has only doubles.
@given(st.dictionaries(st.integers(1, 30_000), st.integers(1, 10**9)))
def test_batches_are_counted_by_their_texts(sizes: dict[int, int]) -> None:
    metrics = Metrics("emotion", "0123456789abcdef", LABELS)
    metrics.update(Counts(batch_sizes=sizes), State())
    after = exposition(metrics)
    assert after.value("worker_batch_texts_count") == sum(sizes.values())
    assert after.value("worker_batch_texts_sum") == sum(size * n for size, n in sizes.items())
    for bound in (1, 64, 1024):
        smaller = sum(times for size, times in sizes.items() if size <= bound)
        assert after.value("worker_batch_texts_bucket", le=f"{bound}.0") == smaller


def test_what_is_counted_later_does_not_change_what_was_taken_over(metrics: Metrics) -> None:
    counts = Counts(batch_sizes={1: 1})
    metrics.update(counts, State())
    counts.batch_sizes[2] = 1
    assert exposition(metrics).value("worker_batch_texts_count") == 1


# Snapshots.


@given(CHUNKS, st.text())
def test_a_snapshot_goes_through_json_unchanged(
    chunks: list[list[tuple[Outcome, int | None]]], topic: str
) -> None:
    metrics = counted(chunks)
    metrics.update(Counts(batch_sizes={3: 2}, infer_seconds=0.1), State(lag={(topic, 0): 1}))
    snapshot = metrics.snapshot()
    line = json.dumps(snapshot)
    assert "\n" not in line
    assert json.loads(line) == snapshot


def test_a_snapshot_stays_as_it_was(metrics: Metrics) -> None:
    before = metrics.snapshot()
    copy = json.loads(json.dumps(before))
    metrics.chunk_completed([labelled("joy", joy=0.5)], [1], NOW)
    metrics.update(Counts(batch_sizes={1: 1}, tokens=1), State(refused=1, lag={("chat", 0): 1}))
    assert before == copy
    assert metrics.snapshot() != copy


def test_a_snapshot_from_another_thread_has_every_chunk_whole(metrics: Metrics) -> None:
    done = threading.Event()

    def work() -> None:
        for turn in range(300):
            metrics.chunk_completed([labelled("joy")] * 3, [1, 2, 3], NOW)
            metrics.update(Counts(batch_sizes={turn: 1}), State(lag={("chat", turn): 1}))
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    snapshots: list[Snapshot] = []
    while not done.is_set():
        snapshots.append(metrics.snapshot())
    thread.join()
    for snapshot in [*snapshots, metrics.snapshot()]:
        (messages,) = snapshot["worker_messages_total"][0]["values"]
        assert snapshot["worker_chunk_records"][0]["values"][-1] == messages
        assert sum(snapshot["worker_latency_seconds"][0]["values"][:-1]) == messages
        assert snapshot["worker_labels_total"][0] == {"labels": ["joy"], "values": [messages]}


def test_nothing_of_a_message_is_in_a_snapshot() -> None:
    assert "secret" not in json.dumps(worked().snapshot())
    assert "not a JSON object" not in json.dumps(worked().snapshot())


# Processes.


def test_the_series_of_all_processes_are_shown_together() -> None:
    first, second = worked(), worked()
    second.chunk_completed([labelled("joy")] * 4, [None] * 4, NOW)
    statuses = [
        Status(0, live=True, ready=True, metrics=first.snapshot()),
        Status(7, live=True, ready=True, metrics=second.snapshot()),
    ]
    both = Exposition(*statuses)
    apart = [Exposition(status) for status in statuses]
    assert both.values("worker_messages_total", "process") == {("0",): 3, ("7",): 7}
    assert parts(both.samples) == parts(sample for one in apart for sample in one.samples)
    assert parts(s for family in as_read(both) for s in family.samples) == parts(both.samples)


def test_a_process_that_starts_again_counts_from_zero_in_the_same_series() -> None:
    again = Metrics("emotion", "0123456789abcdef", LABELS)
    before, after = exposition(worked()), exposition(again)
    assert before.values("worker_messages_total", "process") == {("0",): 3}
    assert after.values("worker_messages_total", "process") == {("0",): 0}


def test_health_is_shown_also_of_a_process_without_metrics() -> None:
    alone = Exposition(
        Status(0, live=False, ready=False, problem="gone"), Status(1, live=True, ready=False)
    )
    assert alone.values("worker_live", "process") == {("0",): 0, ("1",): 1}
    assert alone.values("worker_ready", "process") == {("0",): 0, ("1",): 0}
    assert len(alone.samples) == 4
    assert len(alone.families) == len(CATALOGUE)


def test_without_processes_there_are_metrics_and_no_series() -> None:
    assert Exposition().samples == []
    assert len(Exposition().families) == len(CATALOGUE)


def test_the_model_and_the_start_of_a_process_are_shown(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = {"name": "emotion", "digest": "0123456789abcdef"}
    assert exposition(metrics).value("worker_model_info", **labels) == 1
    monkeypatch.setattr("time.time", lambda: NOW)
    assert exposition(worked()).value("worker_start_time_seconds") == NOW


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_label_of_any_name_can_be_shown(name: str) -> None:
    metrics = Metrics("emotion", "0123456789abcdef", LABELS)
    metrics.update(Counts(), State(lag={(name, 0): 1}))
    shown = exposition(metrics)
    assert as_read(shown) == shown.families
