"""Quality is counted as the textbook says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.evaluation.quality import comparison_table, measure, quality_table
from worker.inference.artifact import LabelQuality, MeasuredQuality, Quality

if TYPE_CHECKING:
    from random import Random

NAMES = ("calm", "cross", "glad")
LABEL_SETS = st.sets(st.sampled_from(NAMES))
PAIRS = st.lists(st.tuples(LABEL_SETS, LABEL_SETS), min_size=1, max_size=12)

Pairs = list[tuple[set[str], set[str]]]

# (true labels, labels given) of five texts, from which the figures below are counted by hand.
COUNTED: Pairs = [
    ({"calm"}, {"calm"}),
    ({"calm", "glad"}, {"calm"}),
    ({"glad"}, {"glad", "cross"}),
    (set(), {"cross"}),
    (set(), set()),
]


def quality_of(pairs: Pairs) -> Quality:
    return measure(NAMES, [true for true, _ in pairs], [given for _, given in pairs])


def test_labels_are_counted_one_by_one() -> None:
    assert quality_of(COUNTED).labels == {
        # 2 of 2 given are right, 2 of 2 are found.
        "calm": LabelQuality(precision=1.0, recall=1.0, f1=1.0, support=2),
        # 2 given, none right; none to find.
        "cross": LabelQuality(precision=0.0, recall=0.0, f1=0.0, support=0),
        # 1 of 1 given is right, 1 of 2 is found: 2 * 1 / (1 + 2).
        "glad": LabelQuality(precision=1.0, recall=0.5, f1=2 / 3, support=2),
    }


def test_macro_f1_is_the_mean_over_labels() -> None:
    assert quality_of(COUNTED).macro_f1 == pytest.approx((1 + 0 + 2 / 3) / 3)


def test_micro_f1_counts_all_decisions_together() -> None:
    # 3 hits; 5 labels given, 4 true.
    assert quality_of(COUNTED).micro_f1 == pytest.approx(2 * 3 / (5 + 4))


def test_accuracy_counts_texts_whose_labels_are_all_right() -> None:
    quality = quality_of(COUNTED)
    assert quality.texts == 5
    assert quality.accuracy == 2 / 5


def test_where_nothing_is_true_and_nothing_given_f1_is_zero_and_accuracy_one() -> None:
    quality = quality_of([(set(), set())])
    assert (quality.macro_f1, quality.micro_f1, quality.accuracy) == (0, 0, 1)


def test_texts_without_a_counterpart_are_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        measure(NAMES, [{"calm"}, {"glad"}], [{"calm"}])


@given(PAIRS)
def test_the_manifest_that_holds_the_quality_can_be_read_again(pairs: Pairs) -> None:
    quality = quality_of(pairs)
    assert Quality.model_validate_json(quality.model_dump_json()) == quality


@given(PAIRS)
def test_f1_is_the_harmonic_mean_of_precision_and_recall(pairs: Pairs) -> None:
    for label in quality_of(pairs).labels.values():
        both = label.precision + label.recall
        mean = 2 * label.precision * label.recall / both if both else 0
        assert label.f1 == pytest.approx(mean)


@given(st.lists(LABEL_SETS, min_size=1, max_size=12))
def test_a_model_that_is_always_right_has_one_everywhere(truth: list[set[str]]) -> None:
    quality = measure(NAMES, truth, truth)
    assert quality.accuracy == 1
    assert all(q.f1 == (1 if q.support else 0) for q in quality.labels.values())


@given(PAIRS)
def test_precision_and_recall_change_places_with_truth_and_answer(pairs: Pairs) -> None:
    forth = quality_of(pairs)
    back = quality_of([(given_labels, true) for true, given_labels in pairs])
    for name in NAMES:
        assert forth.labels[name].precision == back.labels[name].recall
        assert forth.labels[name].f1 == back.labels[name].f1
    assert (forth.accuracy, forth.micro_f1) == (back.accuracy, back.micro_f1)


@given(PAIRS, st.randoms(use_true_random=False))
def test_the_order_of_the_texts_decides_nothing(pairs: Pairs, random: Random) -> None:
    assert quality_of(random.sample(pairs, len(pairs))) == quality_of(pairs)


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), min_size=1))
def test_where_each_text_has_one_label_micro_f1_is_accuracy(pairs: list[tuple[str, str]]) -> None:
    quality = quality_of([({true}, {given_label}) for true, given_label in pairs])
    assert quality.micro_f1 == quality.accuracy


def test_the_table_has_a_line_a_label_and_a_summary() -> None:
    assert quality_table(quality_of(COUNTED)).splitlines() == [
        "label  precision  recall      F1  support",
        "calm       1.000   1.000   1.000        2",
        "cross      0.000   0.000   0.000        0",
        "glad       1.000   0.500   0.667        2",
        "",
        "5 texts: accuracy 0.4000, macro F1 0.5556, micro F1 0.6667",
    ]


def test_the_model_card_compares_both_precisions_figure_by_figure() -> None:
    right = [(true, true) for true, _ in COUNTED]
    measured = MeasuredQuality(
        file="dev.tsv",
        sha256="0" * 64,
        fp32=quality_of(right),
        int8=quality_of(COUNTED),
        decision_agreement=0.8,
        label_set_agreement=0.4,
    )
    assert comparison_table(measured).splitlines() == [
        "| | fp32 | int8 |",
        "|---|---|---|",
        "| macro F1 | 0.6667 | 0.5556 |",
        "| micro F1 | 1.0000 | 0.6667 |",
        "| accuracy | 1.0000 | 0.4000 |",
        "| single decisions that agree | | 80.00% |",
        "| label sets that agree | | 40.00% |",
        "| F1 calm | 1.0000 | 1.0000 |",
        "| F1 cross | 0.0000 | 0.0000 |",
        "| F1 glad | 1.0000 | 0.6667 |",
    ]
