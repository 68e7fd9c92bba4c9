"""What is kept beside a position, and what it tells of work that was begun there."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition

from worker.transports.kafka.marks import DEATHS_BEFORE_CARE, Beginning, BegunWork, Mark

MARKS = st.builds(
    Mark,
    partitions=st.integers(0),
    starts=st.integers(0),
    until=st.integers(0),
    alone=st.integers(0),
    by=st.text(),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(mark=MARKS, offset=st.integers(0))
def test_a_mark_is_read_as_it_was_written(mark: Mark, offset: int) -> None:
    position = mark.at(offset)
    assert position.offset == offset
    assert Mark.read(position.metadata) == mark


def test_a_mark_with_nothing_to_tell_is_short() -> None:
    assert Mark().at(7).metadata == "{}"
    assert Mark(partitions=3).at(7).metadata == '{"partitions":3}'


@given(
    text=st.none()
    | st.text()
    | JSON.map(json.dumps)
    | st.dictionaries(st.sampled_from([*asdict(Mark())]), JSON).map(json.dumps)
)
def test_what_another_tool_has_written_stops_no_worker(text: str | None) -> None:
    begun = Mark.read(text).begun(5, "me")
    assert Mark.read(begun.at(3).metadata) == begun
    assert begun.passed(5).partitions == begun.partitions


@pytest.mark.parametrize(
    "text",
    ["", "by hand", "[1]", "7", '{"starts": 9, "x": 1}', '{"starts": "9"}', "[" * 4000],
)
def test_what_another_tool_has_written_says_nothing(text: str) -> None:
    assert Mark.read(text) == Mark()


@given(mark=MARKS)
def test_work_that_ended_without_a_death_counts_for_nothing(mark: Mark) -> None:
    together = mark.begun(5, "another").taken_back()
    alone = mark.begun_alone("another").taken_back()
    assert (together.starts, together.alone) == (mark.starts, 0)
    assert (alone.starts, alone.alone) == (mark.starts, mark.alone)


# Work that is begun.

ONE, TWO = (TopicPartition("chat", number) for number in (0, 1))


class Source(NamedTuple):
    """What counts of a record here."""

    offset: int


def polled(*offsets: int) -> list[Source]:
    return [Source(offset) for offset in offsets]


def begin_after(deaths: int, alone: int = 0) -> tuple[BegunWork, Beginning]:
    """Begin on two partitions, in the first of which processes have died at offset 5."""
    mark = Mark()
    for number in range(deaths):
        mark = mark.begun(9, f"process {number}")
    for number in range(alone):
        mark = mark.begun_alone(f"lonely process {number}")
    work = BegunWork()
    committed = {ONE: mark.at(5), TWO: None}
    return work, work.begin({ONE: polled(5, 6, 8), TWO: polled(3)}, committed)


def test_the_first_work_on_a_partition_is_marked_at_its_committed_offset() -> None:
    work, beginning = begin_after(0)
    assert beginning.alone is None
    assert not beginning.deadly
    assert (beginning.records, beginning.put_back) == ({ONE: polled(5, 6, 8), TWO: polled(3)}, {})
    marks = {partition: Mark.read(each.metadata) for partition, each in beginning.marks.items()}
    assert {partition: each.offset for partition, each in beginning.marks.items()} == {
        ONE: 5,
        TWO: 3,
    }
    assert {partition: mark.starts for partition, mark in marks.items()} == {ONE: 1, TWO: 1}
    assert {partition: mark.until for partition, mark in marks.items()} == {ONE: 9, TWO: 4}
    assert not work.careful


def test_more_work_on_a_partition_needs_no_other_mark() -> None:
    work, _ = begin_after(0)
    work.completed({ONE: work.passed(ONE, 9)})
    assert work.unknown([ONE, TWO]) == set()
    records = {ONE: polled(*range(9, 500))}
    assert work.begin(records, {}) == Beginning(records, {}, None, deadly=False, marks={})


def test_where_a_process_has_died_not_many_records_go_together() -> None:
    work = BegunWork()
    beginning = work.begin({ONE: polled(*range(500))}, {ONE: Mark().begun(2000, "dead").at(0)})
    assert len(beginning.records[ONE]) == 64
    assert beginning.put_back == {ONE: 64}
    assert Mark.read(beginning.marks[ONE].metadata).until == 64


def test_where_processes_died_the_first_record_goes_on_alone() -> None:
    work, beginning = begin_after(DEATHS_BEFORE_CARE)
    assert beginning.alone == ONE
    assert not beginning.deadly
    assert beginning.records == {ONE: polled(5)}
    assert beginning.put_back == {ONE: 6, TWO: 3}
    assert Mark.read(beginning.marks[ONE].metadata).alone == 1
    assert beginning.marks.keys() == {ONE}
    assert work.careful == {ONE}


def test_partitions_in_which_processes_died_take_turns_with_the_others() -> None:
    work, _ = begin_after(DEATHS_BEFORE_CARE)
    turns = []
    for _ in range(6):
        unknown = dict.fromkeys(work.unknown([ONE, TWO]))
        beginning = work.begin({ONE: polled(5, 6), TWO: polled(3, 4)}, unknown)
        turns.append(beginning.alone)
        assert beginning.records == ({ONE: polled(5)} if beginning.alone else {TWO: polled(3, 4)})
        assert beginning.put_back == ({ONE: 6, TWO: 3} if beginning.alone else {ONE: 5})
    assert turns == [None, ONE] * 3


def test_several_such_partitions_take_turns_too() -> None:
    work = BegunWork()
    mark = Mark(starts=DEATHS_BEFORE_CARE, until=100)
    three = TopicPartition("chat", 2)
    committed = {ONE: mark.at(0), three: mark.at(0), TWO: None}
    records = {ONE: polled(0), TWO: polled(0), three: polled(0)}
    turns = [work.begin(records, committed).alone]
    turns += [work.begin(records, dict.fromkeys(work.unknown(records))).alone for _ in range(5)]
    assert turns == [ONE, three, None] * 2
    assert [work.begin({ONE: polled(0)}, {}).alone for _ in range(3)] == [ONE] * 3


def test_a_record_that_killed_two_processes_alone_is_deadly() -> None:
    _, once = begin_after(DEATHS_BEFORE_CARE, alone=1)
    assert once.alone == ONE
    assert not once.deadly
    _, twice = begin_after(DEATHS_BEFORE_CARE, alone=2)
    assert twice.deadly


def test_a_process_does_not_take_its_own_beginning_for_a_death() -> None:
    work, _ = begin_after(DEATHS_BEFORE_CARE, alone=1)
    assert not work.begin({ONE: polled(5)}, {}).deadly


def test_care_ends_where_the_work_of_the_dead_would_have_ended() -> None:
    work, _ = begin_after(DEATHS_BEFORE_CARE)
    for position in range(6, 9):
        work.completed({ONE: work.passed(ONE, position)})
        assert work.careful
    work.completed({ONE: work.passed(ONE, 9)})
    assert not work.careful


def test_work_that_ended_badly_is_taken_back_and_counts_for_no_death() -> None:
    work, _ = begin_after(1)
    (taken_back,) = work.taken_back([ONE]).values()
    assert taken_back.offset == 5
    assert Mark.read(taken_back.metadata).starts == 1
    work.completed({ONE: work.passed(ONE, 9)})
    assert work.taken_back([ONE]) == {}


def test_partitions_that_moved_without_work_are_committed_where_they_stand() -> None:
    work, _ = begin_after(0)
    work.completed({p: work.passed(p, position) for p, position in ((ONE, 9), (TWO, 4))})
    moved = work.moved({ONE: 9, TWO: 6, TopicPartition("chat", 2): 7})
    assert {partition: each.offset for partition, each in moved.items()} == {TWO: 6}


def test_after_a_rebalance_nothing_is_known() -> None:
    work, _ = begin_after(DEATHS_BEFORE_CARE)
    work.forget()
    assert work.unknown([ONE, TWO]) == {ONE, TWO}
    assert not work.careful


def test_a_partition_that_was_put_back_for_another_one_is_marked_when_work_begins_there() -> None:
    work, _ = begin_after(DEATHS_BEFORE_CARE)
    assert work.unknown([ONE, TWO]) == {TWO}
    later = work.begin({TWO: polled(3)}, {TWO: None})
    assert Mark.read(later.marks[TWO].metadata).starts == 1


def test_work_that_ended_badly_in_the_middle_of_care_does_not_end_it() -> None:
    work, _ = begin_after(DEATHS_BEFORE_CARE)
    work.completed({ONE: work.passed(ONE, 6)})
    work.begin({ONE: polled(6)}, {})
    work.completed(work.taken_back([ONE]))
    assert work.careful
