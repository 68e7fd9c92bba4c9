"""Scores are exact functions of the logits of one text; a label is given from its threshold on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.inference.decisions import Scores, Task, decide, scores_of

LOGITS = st.floats(-1000, 1000, width=32)
SCORES = st.floats(0, 1, width=32)


def scores(task: Task, *logits: float) -> list[float]:
    result: list[float] = scores_of(task, np.array(logits, dtype=np.float32)).tolist()
    return result


@given(LOGITS)
def test_a_score_of_several_is_the_logistic_function(logit: float) -> None:
    (score,) = scores(Task.SEVERAL, logit)
    assert score == pytest.approx(0.5 * (1 + math.tanh(logit / 2)), abs=1e-7)


@given(LOGITS)
def test_logits_of_opposite_sign_have_scores_that_add_up_to_one(logit: float) -> None:
    assert sum(scores(Task.SEVERAL, logit, -logit)) == pytest.approx(1, abs=1e-7)


@given(st.lists(LOGITS, min_size=1, max_size=30))
def test_a_score_of_several_does_not_depend_on_the_other_labels(logits: list[float]) -> None:
    alone = [score for logit in logits for score in scores(Task.SEVERAL, logit)]
    assert scores(Task.SEVERAL, *logits) == alone


@given(st.lists(LOGITS, min_size=1, max_size=30))
def test_scores_of_one_of_add_up_to_one(logits: list[float]) -> None:
    assert sum(scores(Task.ONE_OF, *logits)) == pytest.approx(1, abs=1e-5)


@given(st.lists(LOGITS, min_size=2, max_size=10))
def test_scores_of_one_of_are_the_softmax(logits: list[float]) -> None:
    shares = [1 / sum(math.exp(min(o - logit, 700)) for o in logits) for logit in logits]
    assert scores(Task.ONE_OF, *logits) == pytest.approx(shares, abs=1e-6)


@given(st.lists(st.integers(-100, 100), min_size=1, max_size=10), st.integers(-100, 100))
def test_scores_of_one_of_stay_where_all_logits_move_alike(logits: list[int], step: int) -> None:
    assert scores(Task.ONE_OF, *logits) == scores(Task.ONE_OF, *(logit + step for logit in logits))


@pytest.mark.parametrize("task", Task)
@given(logits=st.lists(LOGITS, min_size=2, max_size=10))
def test_a_higher_logit_never_has_a_lower_score(task: Task, logits: list[float]) -> None:
    logits.sort()
    assert scores(task, *logits) == sorted(scores(task, *logits))


@pytest.mark.parametrize("task", Task)
@given(logits=st.lists(LOGITS, min_size=1, max_size=10))
def test_scores_are_float32_from_zero_to_one(task: Task, logits: list[float]) -> None:
    result = scores_of(task, np.array(logits, dtype=np.float32))
    assert result.dtype == np.float32
    assert ((result >= 0) & (result <= 1)).all()


@pytest.mark.parametrize("task", Task)
@given(rows=st.lists(st.tuples(LOGITS, LOGITS, LOGITS), min_size=1, max_size=9))
def test_scores_of_a_text_do_not_depend_on_where_it_stands(
    task: Task, rows: list[tuple[float, float, float]]
) -> None:
    batch = np.array(rows, dtype=np.float32)
    for row, logits in zip(batch, rows, strict=True):
        assert scores_of(task, row).tolist() == scores(task, *logits)


@pytest.mark.parametrize(
    ("task", "expected"),
    [(Task.SEVERAL, [1.0, 0.0, 0.5]), (Task.ONE_OF, [1.0, 0.0, 0.0])],
)
def test_extreme_logits_have_plain_scores(task: Task, expected: list[float]) -> None:
    assert scores(task, 1000, -1000, 0) == expected


def test_no_logits_have_no_scores() -> None:
    assert scores(Task.SEVERAL) == []


def test_several_gives_each_label_that_reaches_its_threshold_in_the_order_of_the_model() -> None:
    given_labels = decide(Task.SEVERAL, "abcd", [0.9, 0.2, 0.5, 0.1], [0.8, 0.3, 0.5, 0.0])
    assert given_labels == ("a", "c", "d")


def test_several_may_give_no_label() -> None:
    assert decide(Task.SEVERAL, "ab", [0.4, 0.4], [0.5, 0.5]) == ()
    assert decide(Task.SEVERAL, "", [], []) == ()


def test_one_of_gives_the_label_with_the_highest_score_whatever_the_others_reach() -> None:
    assert decide(Task.ONE_OF, "abc", [0.3, 0.5, 0.2], [0.0, 0.0, 0.0]) == ("b",)


def test_one_of_gives_none_where_the_highest_score_does_not_reach_its_threshold() -> None:
    assert decide(Task.ONE_OF, "abc", [0.3, 0.5, 0.2], [0.0, 0.6, 0.0]) == ()


def test_one_of_gives_the_first_of_equal_scores() -> None:
    assert decide(Task.ONE_OF, "abc", [0.2, 0.4, 0.4], [0.0, 0.0, 0.0]) == ("b",)


@pytest.mark.parametrize("task", Task)
@given(score=SCORES)
def test_a_score_equal_to_its_threshold_gives_the_label(task: Task, score: float) -> None:
    assert decide(task, ["a"], [score], [score]) == ("a",)


@pytest.mark.parametrize("task", Task)
@given(score=st.floats(0, 1, exclude_max=True))
def test_a_score_just_below_its_threshold_does_not(task: Task, score: float) -> None:
    assert decide(task, ["a"], [score], [math.nextafter(score, 1)]) == ()


@given(st.lists(st.tuples(SCORES, SCORES), max_size=8))
def test_labels_of_several_are_decided_one_by_one(cases: list[tuple[float, float]]) -> None:
    names = [str(index) for index in range(len(cases))]
    alone = [
        name
        for name, (score, threshold) in zip(names, cases, strict=True)
        if decide(Task.SEVERAL, [name], [score], [threshold])
    ]
    together = decide(Task.SEVERAL, names, [case[0] for case in cases], [case[1] for case in cases])
    assert list(together) == alone


@given(st.lists(SCORES, min_size=1, max_size=8), st.data())
def test_one_of_gives_one_label_at_most(values: list[float], data: st.DataObject) -> None:
    thresholds = data.draw(st.lists(SCORES, min_size=len(values), max_size=len(values)))
    names = [str(index) for index in range(len(values))]
    assert len(decide(Task.ONE_OF, names, values, thresholds)) <= 1
    assert len(decide(Task.ONE_OF, names, values, [0.0] * len(values))) == 1


@given(st.dictionaries(st.text(), SCORES))
def test_packed_scores_are_a_mapping_from_labels_to_float32(expected: dict[str, float]) -> None:
    packed = np.array(list(expected.values()), dtype=np.float32).tobytes()
    found = Scores(tuple(expected), packed)
    assert found == expected
    assert list(found) == list(expected)
    assert len(found) == len(expected)
    assert repr(found) == repr(expected)
    with pytest.raises(KeyError):
        found["".join(expected) + "!"]
