"""How much is taken at once, and how long is waited after a failure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.transports.kafka import pacing
from worker.transports.kafka.pacing import (
    FIRST_CHUNK_RECORDS,
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    ChunkSize,
    Retries,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

# Records and seconds of a chunk that was completed, or None for one that was abandoned.
ENDS = st.lists(st.none() | st.tuples(st.integers(0, 3000), st.floats(0, 100)))


@given(st.integers(1, 10_000), st.floats(0.001, 30), ENDS)
def test_a_chunk_has_a_record_at_least_and_never_more_than_is_allowed(
    most: int, seconds: float, ends: Sequence[tuple[int, float] | None]
) -> None:
    size = ChunkSize(most, seconds)
    for end in [None, *ends]:
        assert 1 <= size.records <= most
        if end is None:
            size.abandoned()
        else:
            size.completed(*end)
    assert 1 <= size.records <= most


def test_a_chunk_is_as_large_as_what_is_labelled_in_its_time() -> None:
    size = ChunkSize(2048, 0.5)
    assert size.records == FIRST_CHUNK_RECORDS
    size.completed(64, 0.1)
    assert size.records == 320
    size.abandoned()
    assert size.records == 160
    size.completed(0, 10)
    assert size.records == 160


@dataclass
class Clock:
    """A monotonic clock that a test sets."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class Report:
    problem: str | None = None
    retries: int = 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pacing, "time", clock)
    return clock


def pause_of(retries: Retries, clock: Clock) -> float:
    """Return how long it is paused, in seconds to a hundredth."""
    begun = clock.now
    retries.pause()
    while retries.pausing:
        clock.now += 0.01
    return clock.now - begun


def test_pauses_double_up_to_a_limit_until_something_succeeds(clock: Clock) -> None:
    retries = Retries(Report())
    assert not retries.pausing
    pauses = [pause_of(retries, clock) for _ in range(7)]
    doubled = [min(FIRST_PAUSE_SECONDS * 2**n, LONGEST_PAUSE_SECONDS) for n in range(7)]
    assert pauses == pytest.approx(doubled, abs=0.02)
    retries.succeeded()
    assert pause_of(retries, clock) == pytest.approx(FIRST_PAUSE_SECONDS, abs=0.02)


def test_a_problem_is_logged_when_it_is_new_and_then_every_ten_seconds(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    report = Report()
    retries = Retries(report)
    for _ in range(25):
        retries.report("the brokers are away")
        clock.now += 1
    assert caplog.text.count("the brokers are away") == 3
    retries.report("the credentials are refused")
    assert caplog.text.count("the credentials are refused") == 1
    assert report == Report("the credentials are refused", 26)
