"""Deadlines: whichever end comes first counts, in whatever order they are set."""

from __future__ import annotations

import math
import time
from itertools import permutations
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.events.decoding import decode_text
from worker.events.encoding import LabelEncoder
from worker.settings.schema import KafkaSettings
from worker.transports.base import ChunkAbandonedError
from worker.transports.kafka.deadline import Deadline
from worker.transports.kafka.records import ProducerRecordEncoder
from worker.transports.kafka.transport import KafkaChunk, KafkaTransport, TransportLimits

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = st.floats(-1e6, 1e6)


@given(SECONDS, SECONDS)
def test_the_earlier_end_counts_whichever_was_set_last(work: float, everything: float) -> None:
    now = time.monotonic()
    for order in permutations((0, 1)):
        deadline = Deadline()
        steps: list[Callable[[], None]] = [
            lambda deadline=deadline: deadline.begin(now + work),  # type: ignore[misc]
            lambda deadline=deadline: deadline.stop_by(now + everything),  # type: ignore[misc]
        ]
        for step in order:
            steps[step]()
        before = time.monotonic()
        remaining = deadline.remaining
        after = time.monotonic()
        end = now + min(work, everything)
        assert max(0.0, end - after) <= remaining <= max(0.0, end - before)


def test_new_work_is_no_longer_bound_by_the_end_of_the_old() -> None:
    deadline = Deadline(0)
    assert deadline.remaining == 0
    deadline.begin(math.inf)
    assert deadline.remaining == math.inf


def test_work_is_made_shorter_but_not_longer() -> None:
    deadline = Deadline(1)
    deadline.shorten(1e6)
    assert deadline.remaining <= 1
    deadline.shorten(0)
    assert deadline.remaining == 0


def test_when_the_time_is_over_the_chunk_is_abandoned_with_the_problem() -> None:
    Deadline().check("too late")
    with pytest.raises(ChunkAbandonedError, match="too late"):
        Deadline(0).check("too late")


class TimeOfAPoll(float):
    """A time at which, when it is looked at, the process is asked to stop."""

    stop: Callable[[float], None]

    def __add__(self, seconds: Any) -> float:
        self.stop(time.monotonic())
        return float(self) + float(seconds)


def test_a_signal_to_stop_counts_also_where_it_comes_while_a_chunk_gets_its_deadline() -> None:
    settings = KafkaSettings(brokers=("127.0.0.1:1",))
    encoder = ProducerRecordEncoder(
        LabelEncoder("test", "0"), "labels", "dead", "group", max_bytes=2**20
    )
    transport = KafkaTransport(settings, decode_text, encoder, TransportLimits(1000, 60))
    polled = TimeOfAPoll(time.monotonic())
    polled.stop = transport.stop_by
    group: Any = object()
    with pytest.raises(ChunkAbandonedError, match="the chunk took too long to label"):
        transport.complete(KafkaChunk(group=group, polled=polled), [])
