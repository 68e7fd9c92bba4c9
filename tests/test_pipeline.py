"""The loop: outcomes in order, bad messages isolated, chunks abandoned and done again."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.classifications import classified
from tests.conftest import POISON
from tests.transports.memory import MemoryTopic, MemoryTransport
from worker import pipeline
from worker.errors import EngineError
from worker.events.codec import decode_text
from worker.events.records import (
    DeadLetter,
    ErrorKind,
    Event,
    FilePlace,
    LabelledEvent,
    Outcome,
    Record,
)
from worker.inference.artifact import load_artifact
from worker.inference.classifier import Classifier

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def test_all_records_of_a_topic_are_labelled(classifier: Classifier) -> None:
    topic = MemoryTopic([[b"gg", b"\xff", b"wp"], [b"lol"]])
    chunks: list[int] = []
    ended = pipeline.run(
        MemoryTransport(topic, decode_text, chunk_records=2),
        classifier,
        completed=lambda _, outcomes: chunks.append(len(outcomes)),
        stopping=lambda: False,
    )
    assert ended
    assert chunks == [2, 2]
    kinds = [getattr(outcome, "kind", "labelled") for outcome in topic.outcomes]
    assert sorted(kinds) == ["labelled", "labelled", "labelled", ErrorKind.NOT_UTF8]


def test_it_stops_between_two_chunks_when_asked(classifier: Classifier) -> None:
    topic = MemoryTopic([[b"gg"] * 10])
    transport = MemoryTransport(topic, decode_text, chunk_records=3)
    ended = pipeline.run(
        transport, classifier, completed=lambda *_: None, stopping=lambda: len(topic.outcomes) >= 6
    )
    assert not ended
    assert topic.committed == {0: 6}


def test_an_abandoned_chunk_is_told_of_and_done_again(
    classifier: Classifier, caplog: pytest.LogCaptureFixture
) -> None:
    topic = MemoryTopic([[b"gg", b"wp", b"lol"]])
    transport = MemoryTransport(topic, decode_text)
    others: list[MemoryTransport] = []
    classify = classifier.classify

    def while_another_comes_and_goes(texts: Sequence[str]) -> Any:
        if not others:
            others.append(MemoryTransport(topic, decode_text))
            others[0].close()
        return classify(texts)

    classifier.classify = while_another_comes_and_goes  # type: ignore[method-assign]
    assert pipeline.run(transport, classifier, completed=lambda *_: None, stopping=lambda: False)
    texts = [outcome.event.text for outcome in topic.outcomes if isinstance(outcome, LabelledEvent)]
    assert texts == ["gg", "wp", "lol"]
    assert "chunk abandoned" in caplog.text


def label_texts(classifier: Classifier, texts: Sequence[str]) -> list[Outcome]:
    records = [Record(text.encode(), FilePlace("test", n)) for n, text in enumerate(texts, 1)]
    return pipeline.label(classifier, [decode_text(record) for record in records])


@pytest.mark.parametrize("bad", [{0}, {9}, {3, 4}, {0, 5, 9}, set(range(10))])
def test_only_the_messages_that_the_model_cannot_score_become_dead_letters(
    poisoned_model: Path, classifier: Classifier, bad: set[int]
) -> None:
    texts = [f"{POISON} {n}" if n in bad else f"horse {n}" for n in range(10)]
    outcomes = label_texts(Classifier(load_artifact(poisoned_model)), texts)
    assert {n for n, o in enumerate(outcomes) if isinstance(o, DeadLetter)} == bad
    assert all(o.kind == ErrorKind.ENGINE for o in outcomes if isinstance(o, DeadLetter))
    good = [o.classification for o in outcomes if isinstance(o, LabelledEvent)]
    assert good == classifier.classify([t for n, t in enumerate(texts) if n not in bad])


def test_a_model_that_fails_on_everything_makes_no_dead_letters(
    poisoned_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.inference.classifier._KNOWN_GOOD_TEXT", POISON)
    with pytest.raises(EngineError, match="fails on a known good text"):
        label_texts(Classifier(load_artifact(poisoned_model)), [f"{POISON} again"])


# Whether the fault is the model's.

LINE = Record(b"a text", FilePlace("test", 1))
FAILED: Outcome = DeadLetter(LINE, ErrorKind.ENGINE, "")
BAD: Outcome = DeadLetter(LINE, ErrorKind.NOT_JSON, "")
SCORED: Outcome = LabelledEvent(Event(LINE, 1, "a text"), classified({"joy": 1.0}))


def first_refused(chunks: Sequence[Sequence[Outcome]]) -> int | None:
    """Return the number of the first chunk that is not to be published, if there is one."""
    failures = pipeline._EngineFailures()
    for number, outcomes in enumerate(chunks):
        try:
            failures.judge(outcomes)
        except EngineError:
            return number
    return None


def test_a_chunk_of_which_most_fail_is_refused_even_if_its_last_messages_are_well() -> None:
    assert first_refused([[FAILED] * 1900 + [SCORED] * 148]) == 0


def test_a_few_failures_that_stand_together_are_not_the_models_fault() -> None:
    chunk = [SCORED] * 1988 + [FAILED] * 60
    assert first_refused([chunk, [SCORED], [FAILED], chunk]) is None


def test_small_chunks_add_up() -> None:
    assert first_refused([[SCORED]] * 100 + [[FAILED]] * 100) == 100 + 50
    assert first_refused([[FAILED]] * 100) == 15


def test_records_that_never_reached_the_engine_do_not_count() -> None:
    assert first_refused([[BAD] * 100 + [FAILED] * 8 + [SCORED] * 8] * 10) is None
    assert first_refused([[BAD] * 100 + [FAILED] * 9 + [SCORED] * 7]) == 0


chunks = st.lists(
    st.builds(
        lambda scored, failed, bad: [SCORED] * scored + [FAILED] * failed + [BAD] * bad,
        *(st.integers(0, most) for most in (300, 300, 5)),
    ),
    max_size=12,
)


@given(chunks)
def test_no_large_chunk_is_published_of_which_most_failed(chunks: Sequence[list[Outcome]]) -> None:
    refused = first_refused(chunks)
    for outcomes in chunks[:refused]:
        counts = Counter(map(id, outcomes))
        failed, scored = counts[id(FAILED)], counts[id(SCORED)]
        assert failed <= scored or failed + scored < 100


@given(chunks)
def test_where_no_chunk_fails_by_half_none_is_refused(chunks: Sequence[list[Outcome]]) -> None:
    calm = [[*outcomes, *[SCORED] * outcomes.count(FAILED)] for outcomes in chunks]
    assert first_refused(calm) is None
