"""Thresholds are chosen for F1, and not too finely."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from worker.build.thresholds import choose_thresholds

if TYPE_CHECKING:
    from random import Random

    from numpy.typing import NDArray

SCORES = st.floats(0, 1, width=32)


@st.composite
def scores_and_truth(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    shape = draw(st.integers(1, 30)), draw(st.integers(1, 3))
    return draw(arrays(np.float32, shape, elements=SCORES)), draw(arrays(np.bool_, shape))


def one_label(
    scores: list[float], truth: list[int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    return np.array([scores], dtype=np.float32).T, np.array([truth], dtype=np.bool_).T


def f1(scores: NDArray[np.float32], truth: NDArray[np.bool_], threshold: float) -> float:
    given_labels = scores >= threshold
    hits = int((given_labels & truth).sum())
    return 2 * hits / max(int(given_labels.sum() + truth.sum()), 1)


def f1_around(scores: NDArray[np.float32], truth: NDArray[np.bool_], threshold: float) -> float:
    near = [round(threshold + step / 100, 2) for step in range(-2, 3)]
    return float(np.mean([f1(scores, truth, min(max(t, 0.05), 0.95)) for t in near]))


@given(scores_and_truth())
def test_no_threshold_is_worse_than_a_half_where_scores_are_a_little_off(
    case: tuple[NDArray[np.float32], NDArray[np.bool_]],
) -> None:
    scores, truth = case
    for label, threshold in enumerate(choose_thresholds(scores, truth)):
        chosen = f1_around(scores[:, label], truth[:, label], threshold)
        assert chosen >= f1_around(scores[:, label], truth[:, label], 0.5) - 1e-9


def test_a_threshold_that_only_one_text_speaks_for_is_not_chosen() -> None:
    # At 0.9 exactly, F1 would be best; next to it, it is worse than in the wide middle.
    scores = [*[0.1] * 6, *[0.6] * 8, *[0.89] * 3, *[0.9] * 9, *[0.91] * 2]
    truth = [*[0] * 6, *[1] * 8, *[0] * 3, *[1] * 9, *[0] * 2]
    (threshold,) = choose_thresholds(*one_label(scores, truth))
    assert 0.1 < threshold <= 0.6


@given(scores_and_truth())
def test_thresholds_keep_away_from_zero_and_one(
    case: tuple[NDArray[np.float32], NDArray[np.bool_]],
) -> None:
    assert all(0.05 <= threshold <= 0.95 for threshold in choose_thresholds(*case))


@given(scores_and_truth(), st.randoms(use_true_random=False))
def test_the_order_of_the_texts_decides_nothing(
    case: tuple[NDArray[np.float32], NDArray[np.bool_]], random: Random
) -> None:
    scores, truth = case
    order = random.sample(range(len(scores)), len(scores))
    assert choose_thresholds(scores[order], truth[order]) == choose_thresholds(scores, truth)


@given(scores_and_truth())
def test_a_label_has_a_threshold_of_its_own(
    case: tuple[NDArray[np.float32], NDArray[np.bool_]],
) -> None:
    scores, truth = case
    alone = [
        choose_thresholds(scores[:, [label]], truth[:, [label]])[0]
        for label in range(scores.shape[1])
    ]
    assert choose_thresholds(scores, truth) == alone


@pytest.mark.parametrize(
    ("scores", "truth", "expected"),
    [
        ([0.1, 0.3, 0.7, 0.9], [0, 0, 1, 1], 0.5),
        ([0.1, 0.2, 0.4, 0.4], [0, 0, 1, 1], 0.3),
        ([0.6, 0.7, 0.8, 0.9], [0, 0, 1, 1], 0.75),
    ],
)
def test_a_threshold_stands_midway_between_what_it_tells_apart(
    scores: list[float], truth: list[int], expected: float
) -> None:
    assert choose_thresholds(*one_label(scores, truth)) == pytest.approx([expected], abs=0.011)


def test_a_label_that_no_text_has_gets_a_half() -> None:
    assert choose_thresholds(*one_label([0.1, 0.9], [0, 0])) == [0.5]


def test_a_threshold_gives_some_false_labels_for_more_true_ones() -> None:
    scores, truth = one_label([0.9, 0.3, 0.3, 0.2, 0.1], [1, 1, 0, 1, 0])
    (threshold,) = choose_thresholds(scores, truth)
    assert 0.1 < threshold <= 0.2
