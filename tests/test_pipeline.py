"""The loop: outcomes in order, bad messages isolated, a bad model found, chunks done again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.classifications import classified
from tests.conftest import POISON
from tests.transports.memory import MemoryTopic, MemoryTransport
from worker import pipeline
from worker.errors import EngineError
from worker.events.decoding import decode_text
from worker.events.records import (
    DeadLetter,
    ErrorKind,
    Event,
    FilePlace,
    LabelledEvent,
    Outcome,
    Record,
    Skipped,
)
from worker.inference.classifier import Classifier
from worker.inference.engine import load_model

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


def test_an_abandoned_chunk_is_logged_and_done_again(
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

    classifier.classify = while_another_comes_and_goes  # type: ignore[method-assign]  # the real one goes on inside
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
    outcomes = label_texts(Classifier(load_model(poisoned_model)), texts)
    assert {n for n, o in enumerate(outcomes) if isinstance(o, DeadLetter)} == bad
    assert all(o.kind == ErrorKind.ENGINE for o in outcomes if isinstance(o, DeadLetter))
    good = [o.classification for o in outcomes if isinstance(o, LabelledEvent)]
    assert good == classifier.classify([t for n, t in enumerate(texts) if n not in bad])


def test_a_model_that_fails_on_everything_makes_no_dead_letters(
    poisoned_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.inference.classifier._KNOWN_GOOD_TEXT", POISON)
    with pytest.raises(EngineError, match="fails on a known good text"):
        label_texts(Classifier(load_model(poisoned_model)), [f"{POISON} again"])


# Whether single messages are at fault, or the model.

RECORD = Record(b"", FilePlace("test", 1))
WORKS: Outcome = LabelledEvent(Event(RECORD, "m-1", ""), classified({"joy": 0.5}, "joy"))
FAILS: Outcome = DeadLetter(RECORD, ErrorKind.ENGINE, "the model cannot score this text")
# What the engine was never given says nothing about the model.
OTHER: list[Outcome] = [
    Skipped(RECORD),
    DeadLetter(RECORD, ErrorKind.NOT_JSON, "the record is not valid JSON"),
]


def published(chunks: Sequence[Sequence[Outcome]]) -> list[Sequence[Outcome]]:
    """Return the chunks that are published before the model is found to be at fault."""
    window = pipeline.FailureWindow()
    done: list[Sequence[Outcome]] = []
    for chunk in chunks:
        count = pipeline.EngineCount.of(chunk)
        try:
            window.check(count)
        except EngineError:
            break
        window.remember(count)
        done.append(chunk)
    return done


def failed(outcomes: Sequence[Outcome]) -> int:
    return sum(outcome is FAILS for outcome in outcomes)


def test_a_chunk_in_which_most_fail_is_not_published_though_its_last_messages_work(
    poisoned_model: Path,
) -> None:
    texts = [f"{POISON} {n}" for n in range(101)] + [f"horse {n}" for n in range(100)]
    topic = MemoryTopic([[text.encode() for text in texts]])
    transport = MemoryTransport(topic, decode_text, chunk_records=len(texts))
    classifier = Classifier(load_model(poisoned_model))
    with pytest.raises(EngineError, match="fails on 101 of the last 201 messages"):
        pipeline.run(transport, classifier, completed=lambda *_: None, stopping=lambda: False)
    assert (topic.outcomes, topic.committed) == ([], {})
    assert published([[FAILS] * 1900 + [WORKS] * 148]) == []


def test_failures_that_gather_at_the_end_of_a_large_chunk_do_not_end_the_worker(
    poisoned_model: Path,
) -> None:
    texts = [f"horse {n}" for n in range(100)] + [f"{POISON} {n}" for n in range(60)] + ["gg"]
    topic = MemoryTopic([[text.encode() for text in texts]])
    transport = MemoryTransport(topic, decode_text, chunk_records=160)
    classifier = Classifier(load_model(poisoned_model))
    assert pipeline.run(transport, classifier, completed=lambda *_: None, stopping=lambda: False)
    assert topic.committed == {0: 161}
    letters = [outcome for outcome in topic.outcomes if isinstance(outcome, DeadLetter)]
    assert [letter.kind for letter in letters] == [ErrorKind.ENGINE] * 60
    assert len(published([[WORKS] * 1988 + [FAILS] * 60, [WORKS]])) == 2


def test_fewer_than_16_messages_do_not_show_that_the_model_is_at_fault() -> None:
    assert len(published([[FAILS] * 15])) == 1
    assert len(published([[FAILS] * 16])) == 0
    assert len(published([[FAILS, *OTHER * 10]] * 20)) == 15


def test_half_is_not_most() -> None:
    assert len(published([[FAILS] * 8 + [WORKS] * 8])) == 1
    assert len(published([[FAILS] * 9 + [WORKS] * 8])) == 0


def test_small_chunks_are_judged_together_by_the_last_100_messages() -> None:
    chunks = [[WORKS]] * 1000 + [[FAILS]] * 1000
    assert sum(failed(chunk) for chunk in published(chunks)) == 50


def test_messages_of_a_large_chunk_count_until_100_have_come_after_it() -> None:
    chunks = [[WORKS] * 2048, *[[FAILS]] * 1000]
    assert sum(failed(chunk) for chunk in published(chunks)) == 99


def test_an_abandoned_chunk_does_not_count_twice(
    poisoned_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    topic = MemoryTopic([[POISON.encode()]])
    transport = MemoryTransport(topic, decode_text)
    classifier = Classifier(load_model(poisoned_model))
    check = classifier.check
    rebalances = iter(range(20))

    def while_the_group_rebalances() -> None:
        if next(rebalances, None) is not None:
            MemoryTransport(topic, decode_text).close()
        check()

    classifier.check = while_the_group_rebalances  # type: ignore[method-assign]  # the real one goes on inside
    assert pipeline.run(transport, classifier, completed=lambda *_: None, stopping=lambda: False)
    assert caplog.text.count("chunk abandoned") == 20
    assert [type(outcome) for outcome in topic.outcomes] == [DeadLetter]


OUTCOMES = st.sampled_from([WORKS, FAILS, *OTHER])
CHUNKS = st.lists(
    st.lists(OUTCOMES, max_size=12)
    | st.tuples(st.integers(0, 300), st.integers(0, 300)).map(
        lambda counts: [FAILS] * counts[0] + [WORKS] * counts[1]
    ),
    max_size=40,
)


def judged(chunk: Sequence[Outcome]) -> list[Outcome]:
    return [outcome for outcome in chunk if outcome is WORKS or outcome is FAILS]


@given(CHUNKS)
def test_a_chunk_in_which_most_fail_is_never_published(chunks: list[list[Outcome]]) -> None:
    for chunk in published(chunks):
        assert len(judged(chunk)) < 16 or 2 * failed(chunk) <= len(judged(chunk))


@given(CHUNKS)
def test_where_it_ends_most_have_failed_of_the_chunk_or_of_the_last_messages(
    chunks: list[list[Outcome]],
) -> None:
    done = published(chunks)
    if len(done) == len(chunks):
        return
    chunk = judged(chunks[len(done)])
    window = list(chunk)
    for earlier in reversed(done):
        if len(window) < 100:
            window += judged(earlier)
    assert any(len(o) >= 16 and 2 * failed(o) > len(o) for o in (chunk, window))


@given(CHUNKS)
def test_where_at_most_half_of_each_chunk_fail_it_never_ends(chunks: list[list[Outcome]]) -> None:
    chunks = [chunk + [WORKS] * failed(chunk) for chunk in chunks]
    assert published(chunks) == chunks


@given(CHUNKS, st.lists(st.integers(1, 300), min_size=100, max_size=100))
def test_of_a_model_that_begins_to_fail_on_everything_fewer_than_100_become_dead_letters(
    before: Sequence[Sequence[Outcome]], sizes: list[int]
) -> None:
    before = published(before)
    after = published([*before, *([FAILS] * size for size in sizes)])[len(before) :]
    assert sum(failed(chunk) for chunk in after) < 100
