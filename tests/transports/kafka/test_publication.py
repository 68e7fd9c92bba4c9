"""What of a chunk is sent together: all of it, in its order, and alone what may be refused."""

from __future__ import annotations

from itertools import chain
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.transports.base import ChunkAbandonedError
from worker.transports.kafka.publication import Publication, RefusedError, coordinates_of
from worker.transports.kafka.records import ProducerRecord


class Source(NamedTuple):
    """The place of an event."""

    topic: str
    partition: int
    offset: int


def to(topic: str, timestamp: int | None = 1) -> ProducerRecord:
    return ProducerRecord(topic, b"", None, [], timestamp)


def replacement(
    source: object,  # noqa: ARG001 - what the publication knows of the refused one
    message: ProducerRecord,
    *,
    too_large: bool,  # noqa: ARG001 - as above
) -> ProducerRecord | None:
    return None if message.topic == "dead" else to("dead", None)


def publication(*topics: str) -> Publication:
    """Return messages to these topics, of events one after the other."""
    messages = [(Source("chat", 0, n), to(topic)) for n, topic in enumerate(topics)]
    return Publication(messages, replacement)


PLACES = [coordinates_of(Source("chat", 0, n)) for n in range(30)]
NUMBERS = st.sets(st.integers(0, 29))


@given(
    topics=st.lists(st.sampled_from(["labels", "dead"]), max_size=30),
    acknowledged=NUMBERS,
    suspects=NUMBERS,
)
def test_each_message_goes_once_letters_first_and_each_topic_in_its_order(
    topics: list[str], acknowledged: set[int], suspects: set[int]
) -> None:
    chunk = publication(*topics)
    chunk.amend(RefusedError(suspects=[PLACES[n] for n in suspects]))
    parts = list(chunk.parts("dead", [PLACES[n] for n in acknowledged]))
    left = [n for n in range(len(topics)) if n not in acknowledged]
    expected = [n for topic in ("dead", "labels") for n in left if topics[n] == topic]
    assert list(chain.from_iterable(parts)) == [PLACES[n] for n in expected]
    for part in parts:
        assert len({message.topic for message in part.values()}) == 1
        numbers = {place[2] for place in part}
        assert not numbers & suspects or (numbers <= suspects and len(part) <= 2)


def test_without_suspicion_letters_go_together_and_labels_too() -> None:
    parts = publication("labels", "dead", "labels", "dead", "labels").parts("dead")
    assert [[place[2] for place in part] for part in parts] == [[1, 3], [0, 2, 4]]


@given(culprits=st.sets(st.integers(0, 2047), max_size=3))
def test_every_culprit_is_found_within_a_few_attempts(culprits: set[int]) -> None:
    chunk = publication(*["labels"] * 2048)
    guilty = {coordinates_of(Source("chat", 0, n)) for n in culprits}
    for _ in range(4 * len(culprits)):
        # As of a transaction: all that was sent with a culprit fails with it.
        left = {place for place in guilty if chunk.messages[place].topic == "labels"}
        part = next((each for each in chunk.parts("dead") if each.keys() & left), None)
        if part is None:
            break
        chunk.amend(RefusedError(part) if len(part) == 1 else RefusedError(suspects=part))
    letters = {place for place, each in chunk.messages.items() if each.topic == "dead"}
    assert letters == guilty


def test_all_culprits_become_dead_letters() -> None:
    chunk = publication("labels", "labels", "labels")
    chunk.amend(RefusedError([PLACES[0], PLACES[2]]))
    assert [each.topic for each in chunk.messages.values()] == ["dead", "labels", "dead"]
    assert chunk.refused == 2


def test_a_refused_timestamp_goes_into_a_header() -> None:
    chunk = publication("labels")
    chunk.amend(RefusedError([PLACES[0]], timestamp=True))
    (amended,) = chunk.messages.values()
    assert (amended.topic, amended.timestamp) == ("labels", None)
    assert amended.headers == [("worker-timestamp", b"1")]


def test_a_dead_letter_that_is_refused_is_a_problem_of_its_topic() -> None:
    chunk = publication("dead")
    with pytest.raises(ChunkAbandonedError, match="dead-letter topic refuses a record"):
        chunk.amend(RefusedError([PLACES[0]]))
