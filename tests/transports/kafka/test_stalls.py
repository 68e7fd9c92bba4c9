"""A client that gives no records although there are some ends the process, and no other does."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition

from worker.errors import WorkerError
from worker.logs.logger import configure_logs
from worker.transports.kafka.stalls import OpenTransactions, StallDetector

ONE, TWO = (TopicPartition("chat", number) for number in (0, 1))


def test_a_partition_that_has_records_and_does_not_move_is_stuck_after_a_time() -> None:
    detector = StallDetector(10)
    for _ in range(6):
        detector.look({ONE: 5, TWO: 7}, {ONE: 3, TWO: 0}, 2)
    with pytest.raises(WorkerError, match="none has come for 10 seconds: 1"):
        detector.look({ONE: 5, TWO: 7}, {ONE: 3, TWO: 0}, 2)


def test_after_a_rewind_the_time_counts_anew() -> None:
    detector = StallDetector(10)
    for _ in range(20):
        detector.look({ONE: 5}, {ONE: 3}, 4)
        detector.look({ONE: 5}, {ONE: 3}, 4)
        detector.reset()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), min_size=1, max_size=50))
def test_a_partition_that_moves_or_has_no_lag_is_never_stuck(
    steps: list[tuple[int, int]],
) -> None:
    detector = StallDetector(0)
    position = 0
    for step, lag in steps:
        # Standing still is fine where there is nothing to read.
        position += step or lag
        detector.look({ONE: position}, {ONE: lag}, 100)


def test_partitions_that_move_in_turn_are_not_stuck() -> None:
    detector = StallDetector(10)
    positions = {ONE: 0, TWO: 0}
    for turn in range(100):
        positions[(ONE, TWO)[turn % 2]] += 1
        detector.look(positions, {ONE: 9, TWO: 9}, 2)


def told(capture: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capture.readouterr().err.splitlines() if "stays open" in line]


def test_a_transaction_that_stays_open_is_told_of_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logs("info", "json")
    transactions = OpenTransactions()
    for _ in range(20):
        transactions.look({ONE: 5, TWO: 9}, {ONE: 3, TWO: 0}, 2)
    (line,) = told(capsys)
    entry = json.loads(line)
    assert (entry["topic"], entry["partition"]) == ONE
    assert (entry["offset"], entry["records"]) == (5, 3)


def test_transactions_that_end_in_time_are_not_told_of(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logs("info", "json")
    transactions = OpenTransactions()
    for turn in range(20):
        transactions.look({ONE: turn // 3}, {ONE: 3}, 2)
        transactions.look({TWO: 5}, {TWO: turn % 3}, 2)
    assert told(capsys) == []
