"""A worker tells of records that it cannot read, and ends where it can read none."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.classifications import classified
from worker.errors import WorkerError
from worker.events.records import DeadLetter, ErrorKind, Event, LabelledEvent, Record, TopicPlace
from worker.logs.logger import configure_logs
from worker.run.unreadable import WINDOW_RECORDS, UnreadableRecords

if TYPE_CHECKING:
    from worker.events.records import Outcome

RECORD = Record(b"x", TopicPlace("chat", 0, 0))
GOOD = LabelledEvent(Event(RECORD, "1", "gg"), classified({}))


def bad(kind: ErrorKind = ErrorKind.NOT_JSON) -> Outcome:
    return DeadLetter(RECORD, kind, "why")


@pytest.mark.parametrize("chunk", [1, 64, 999, 1000, 5000])
def test_where_nothing_can_be_read_the_worker_ends_after_a_window(chunk: int) -> None:
    records = UnreadableRecords(0.99)
    for _ in range(-(-WINDOW_RECORDS // chunk) - 1):
        records.add([bad()] * chunk)
    with pytest.raises(WorkerError, match="cannot be read, most of them are not-json"):
        records.add([bad()] * chunk)


def test_a_few_that_can_be_read_keep_it_going() -> None:
    records = UnreadableRecords(0.99)
    for _ in range(100):
        records.add([bad()] * 98 + [GOOD] * 2)


def test_what_was_good_long_ago_does_not_count() -> None:
    records = UnreadableRecords(0.99)
    records.add([GOOD] * 5000)
    for _ in range(9):
        records.add([bad(ErrorKind.NO_TEXT)] * 100)
    with pytest.raises(WorkerError):
        records.add([bad(ErrorKind.NO_TEXT)] * 100)


@pytest.mark.parametrize("kind", [ErrorKind.ENGINE, ErrorKind.TOO_LARGE, ErrorKind.REFUSED])
def test_other_kinds_are_not_about_the_form(kind: ErrorKind) -> None:
    records = UnreadableRecords(0)
    for _ in range(30):
        records.add([bad(kind)] * 100)


def test_it_can_be_switched_off() -> None:
    records = UnreadableRecords(1)
    for _ in range(30):
        records.add([bad()] * 100)


def test_dead_letters_are_told_of_by_kind_and_not_too_often(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("worker.run.unreadable.time.monotonic", lambda: now)
    configure_logs("info", "json")
    records = UnreadableRecords(1)
    for turn in range(20):
        now = 1000.0 + turn
        records.add([GOOD, bad(), bad(ErrorKind.NO_TEXT)])
        records.add([GOOD])
        records.add([])
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    told = [(line["not-json"], line["no-text"]) for line in lines]
    assert told == [(1, 1), (10, 10)]
