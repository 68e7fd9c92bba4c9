"""Texts to labels: in order, exact, whatever stands beside them and whatever was seen before."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import POISON
from worker import Classifier
from worker.errors import EngineError
from worker.inference.engine import load_model

if TYPE_CHECKING:
    from worker.inference.artifact import Artifact
    from worker.inference.classifier import Classification

WORDS = ["gg", "wp", "lol", "why", "noob", "thanks", "hate", "love", "this", "map", "😂", "!", "?"]
MESSAGES = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)
GOLDEN = Path(__file__).parent / "golden.json"
# Across kinds of CPU, a difference in the last place can flip a rounding to int8.
GOLDEN_TOLERANCE = 0.02


def raw(results: list[Classification]) -> list[tuple[tuple[str, ...], tuple[float, ...]]]:
    return [(result.labels, tuple(result.scores.values())) for result in results]


def test_the_built_in_model_gives_these_labels() -> None:
    golden = json.loads(GOLDEN.read_bytes())
    results = Classifier.load().classify([case["text"] for case in golden])
    for case, result in zip(golden, results, strict=True):
        assert list(result.labels) == case["labels"]
        assert result.scores == pytest.approx(case["scores"], abs=GOLDEN_TOLERANCE)


def test_scores_are_float32_in_the_order_of_the_labels(classifier: Classifier) -> None:
    (result,) = classifier.classify(["gg wp"])
    assert tuple(result.scores) == classifier.artifact.manifest.labels
    assert all(float(np.float32(score)) == score for score in result.scores.values())


@settings(max_examples=40)
@given(texts=st.lists(MESSAGES, max_size=40))
def test_a_text_is_classified_as_if_it_were_alone(artifact: Artifact, texts: list[str]) -> None:
    classifier = Classifier(artifact, memory_entries=0)
    together = raw(classifier.classify(texts))
    assert together == [raw(classifier.classify([text]))[0] for text in texts]


@pytest.mark.parametrize("budget", [1, 16, 512, 4096])
def test_scores_do_not_depend_on_the_token_budget(
    artifact: Artifact, classifier: Classifier, budget: int
) -> None:
    rng = random.Random(1)  # noqa: S311 - the same texts each time
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(0, 12))) for _ in range(300)]
    other = Classifier(artifact, memory_entries=0, token_budget=budget)
    assert raw(other.classify(texts)) == raw(classifier.classify(texts))


def test_memory_and_disk_give_the_same_bytes_as_the_engine(
    classifier: Classifier, tmp_path: Path
) -> None:
    texts = [f"message {number} 😂" for number in range(100)]
    expected = raw(classifier.classify(texts))
    first = Classifier.load(cache_directory=tmp_path)
    assert raw(first.classify(texts)) == expected
    assert raw(first.classify(texts)) == expected
    assert (first.counts.computed, first.counts.memory_hits) == (100, 100)
    first.close()
    second = Classifier.load(cache_directory=tmp_path)
    assert raw(second.classify(texts)) == expected
    assert (second.counts.computed, second.counts.disk_hits) == (0, 100)
    second.close()


def test_duplicates_are_computed_once_and_counted(classifier: Classifier) -> None:
    results = classifier.classify(["gg", "wp", "gg", "gg"])
    assert results[0] == results[2] == results[3]
    counts = classifier.counts
    assert (counts.texts, counts.duplicates, counts.computed) == (4, 2, 2)
    assert counts.hit_rate == 0.5


def test_texts_with_the_same_tokens_share_a_computation(classifier: Classifier) -> None:
    first, second = classifier.classify(["GG  wp", "gg wp"])
    assert first.scores == second.scores
    assert classifier.counts.computed == 1


@pytest.mark.parametrize("memory_entries", [0, 100])
def test_a_text_over_the_limit_is_cut_and_says_so_every_time(
    artifact: Artifact, memory_entries: int
) -> None:
    classifier = Classifier(artifact, memory_entries=memory_entries)
    limit = artifact.manifest.max_tokens
    cut, whole = "ok " * limit, "ok " * (limit - 2)
    for _ in range(2):
        results = classifier.classify([cut, whole])
        assert [result.truncated for result in results] == [True, False]
        assert results[0].scores == results[1].scores
    assert classifier.counts.truncated == 2


ODD_TEXTS = {
    "empty": "",
    "spaces": " \t\n ",
    "zero": "\x00",
    "control characters": "".join(chr(number) for number in range(32)),
    "lone surrogate": "\ud83d",
    "all of them lone": "\udfff\ud800" * 10,
    "right to left": "\u202eabc",
    "combining": "z\u0335\u0321a\u0334\u0322l\u0337" * 20,
    "a megabyte of one word": "a" * 2**20,
    "a megabyte of words": "no " * (2**20 // 3),
    "a megabyte of emoji": "😂" * 2**18,
    "Arabic": "مرحبا بكم جميعا",
    "Chinese": "你好世界",
    "Devanagari": "नमस्ते दुनिया",
    "Ethiopic": "ሰላም",
    "Georgian": "გამარჯობა",
    "Hebrew": "שלום",
    "Japanese": "こんにちは世界",
    "Korean": "안녕하세요",
    "Russian": "привет мир",
    "Thai": "สวัสดี",
    "beyond the basic plane": "\U0001d568\U0001d559 🏴‍☠️ 👨‍👩‍👧",
    "noncharacters": "\ufffe\uffff\U0010ffff",
}


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS.keys())
def test_any_string_gets_scores(classifier: Classifier, text: str) -> None:
    (result,) = classifier.classify([text])
    assert all(0 <= score <= 1 for score in result.scores.values())


def test_no_texts_give_no_results(classifier: Classifier) -> None:
    assert classifier.classify([]) == []


@pytest.mark.parametrize("text", [None, 7, b"bytes", ["list"]])
def test_what_is_no_string_is_refused(classifier: Classifier, text: object) -> None:
    with pytest.raises(TypeError, match="texts must be strings, not"):
        classifier.classify(["fine", text])  # type: ignore[list-item]


@pytest.mark.parametrize("texts", ["gg wp", "", b"gg wp"])
def test_a_single_text_is_refused_with_what_to_write_instead(
    classifier: Classifier, texts: Any
) -> None:
    with pytest.raises(TypeError, match=r"not one (str|bytes): write classify\(\[text\]\)"):
        classifier.classify(texts)
    assert classifier.counts.texts == 0


def test_a_with_statement_closes_the_disk_cache(tmp_path: Path) -> None:
    with Classifier.load(cache_directory=tmp_path) as first:
        expected = first.classify(["gg wp"])
    assert first.disk
    assert not first.disk._thread.is_alive()
    with Classifier.load(cache_directory=tmp_path) as second:
        assert second.classify(["gg wp"]) == expected
    assert second.counts.disk_hits == 1


def test_a_with_statement_closes_the_disk_cache_after_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(TypeError), Classifier.load(cache_directory=tmp_path) as classifier:
        classifier.classify([7])  # type: ignore[list-item]
    assert classifier.disk
    assert not classifier.disk._thread.is_alive()


def test_results_cannot_be_changed(classifier: Classifier) -> None:
    (result,) = classifier.classify(["gg"])
    with pytest.raises(TypeError):
        result.scores["joy"] = 1.0  # type: ignore[index]


def test_a_higher_threshold_withholds_a_label(classifier: Classifier) -> None:
    (usual,) = classifier.classify(["I love this so much"])
    (strict,) = Classifier.load(thresholds={"joy": 1.0}).classify(["I love this so much"])
    assert "joy" in usual.labels
    assert "joy" not in strict.labels
    assert usual.scores == strict.scores


def test_the_check_tells_a_bad_model_from_a_bad_message(poisoned_model: Path) -> None:
    classifier = Classifier(load_model(poisoned_model))
    with pytest.raises(EngineError):
        classifier.classify([POISON])
    classifier.check()


def test_the_check_fails_where_the_model_fails_on_everything(
    poisoned_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.inference.classifier._KNOWN_GOOD_TEXT", POISON)
    with pytest.raises(EngineError, match="known good text"):
        Classifier(load_model(poisoned_model)).check()
