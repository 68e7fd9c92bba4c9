"""What every transport must hold, whatever carries its records.

A transport's tests subclass `TransportContract` and give it a `Harness`: an input with some
partitions, consumers that can come and go, and the means to see what was published. The tests
speak of records as `(partition, number)`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from tests.classifications import classified
from worker.errors import WorkerError
from worker.events.records import DeadLetter, Event, Item, LabelledEvent, Outcome, Skipped
from worker.transports.base import Chunk, ChunkAbandonedError, Transport

if TYPE_CHECKING:
    from collections.abc import Iterator

RECORDS_A_PARTITION = 250
BROKEN = 7

Name: TypeAlias = tuple[int, int]


def value_of(partition: int, number: int) -> bytes:
    """Return the bytes of a record; one in each partition is broken."""
    if number == BROKEN:
        return b'{"id": "%d/%d", "text": ' % (partition, number)
    return json.dumps({"id": f"{partition}/{number}", "text": f"message {number}"}).encode()


def name_of(outcome: Outcome | Item) -> Name:
    if isinstance(outcome, DeadLetter | Skipped):
        name = outcome.record.value.split(b'"')[3].decode()
    else:
        name = str((outcome.event if isinstance(outcome, LabelledEvent) else outcome).id)
    partition, number = name.split("/")
    return int(partition), int(number)


def outcomes_of(chunk: Chunk) -> list[Outcome]:
    """Label a chunk without a model: the contract is not about labels."""
    nothing = classified({"calm": 1.0}, "calm")
    return [
        LabelledEvent(item, nothing) if isinstance(item, Event) else item for item in chunk.items
    ]


class Harness(ABC):
    """An input, its consumers, and what they published."""

    partitions: int

    @abstractmethod
    def consumer(self) -> Transport[Any]:
        """Return a new consumer that goes on from the committed positions."""

    @abstractmethod
    def crash(self, consumer: Transport[Any]) -> None:
        """Let a consumer die without any clean-up of the contract's kind."""

    @abstractmethod
    def rebalance(self) -> None:
        """Share the partitions out anew, where there is such a thing."""

    @abstractmethod
    def fail_next_complete(self) -> None:
        """Make the next completion fail before it has published anything durable."""

    @abstractmethod
    def published(self) -> list[Name]:
        """Return the outcomes that a reader of the outputs sees, in their order."""

    def names(self) -> list[Name]:
        """Return all records of the input."""
        return [(p, n) for p in range(self.partitions) for n in range(RECORDS_A_PARTITION)]


class TransportContract:
    """Each test is one sentence of the contract."""

    @pytest.fixture
    def harness(self) -> Harness:
        raise AssertionError("a transport's tests bring their harness")

    def test_each_record_is_handed_out_and_published_once(self, harness: Harness) -> None:
        drain(harness.consumer())
        assert Counter(harness.published()) == Counter(harness.names())

    def test_records_of_a_partition_are_published_in_order(self, harness: Harness) -> None:
        drain(harness.consumer())
        # Labels and dead letters may go to different places: each keeps its order.
        for partition in range(harness.partitions):
            numbers = [n for p, n in harness.published() if p == partition and n != BROKEN]
            assert numbers == sorted(numbers)

    def test_a_record_that_cannot_be_read_is_a_dead_letter_in_its_place(
        self, harness: Harness
    ) -> None:
        items = [item for chunk in drain(harness.consumer()) for item in chunk.items]
        broken = [item for item in items if isinstance(item, DeadLetter)]
        assert [name_of(letter)[1] for letter in broken] == [BROKEN] * harness.partitions

    def test_a_chunk_that_was_not_completed_comes_again_before_all_later_ones(
        self, harness: Harness
    ) -> None:
        consumer = harness.consumer()
        chunks = consumer.chunks()
        first = next(chunks)
        assert names_in(first)
        assert_come_first(names_in(first), completed(consumer, chunks))

    def test_nothing_is_published_before_complete(self, harness: Harness) -> None:
        next(harness.consumer().chunks())
        assert harness.published() == []

    def test_a_crash_before_complete_loses_nothing(self, harness: Harness) -> None:
        consumer = harness.consumer()
        next(consumer.chunks())
        harness.crash(consumer)
        drain(harness.consumer())
        assert Counter(harness.published()) == Counter(harness.names())

    def test_a_crash_after_complete_repeats_nothing(self, harness: Harness) -> None:
        consumer = harness.consumer()
        chunk = next(consumer.chunks())
        consumer.complete(chunk, outcomes_of(chunk))
        harness.crash(consumer)
        drain(harness.consumer())
        assert Counter(harness.published()) == Counter(harness.names())

    def test_when_complete_fails_nothing_is_skipped(self, harness: Harness) -> None:
        consumer = harness.consumer()
        chunks = consumer.chunks()
        chunk = next(chunks)
        harness.fail_next_complete()
        with pytest.raises((ChunkAbandonedError, WorkerError)):
            consumer.complete(chunk, outcomes_of(chunk))
        assert_come_first(names_in(chunk), completed(consumer, chunks))
        assert Counter(harness.published()) == Counter(harness.names())

    def test_when_complete_fails_and_then_partitions_move_nothing_is_skipped(
        self, harness: Harness
    ) -> None:
        consumer = harness.consumer()
        chunks = consumer.chunks()
        chunk = next(chunks)
        harness.fail_next_complete()
        with pytest.raises((ChunkAbandonedError, WorkerError)):
            consumer.complete(chunk, outcomes_of(chunk))
        harness.rebalance()
        drain(consumer)
        harness.crash(consumer)
        drain(harness.consumer())
        assert Counter(harness.published()) == Counter(harness.names())

    def test_when_partitions_move_before_complete_nothing_is_lost_or_repeated(
        self, harness: Harness
    ) -> None:
        consumer = harness.consumer()
        chunk = next(consumer.chunks())
        harness.rebalance()
        with suppress(ChunkAbandonedError):
            consumer.complete(chunk, outcomes_of(chunk))
        drain(consumer)
        harness.crash(consumer)
        drain(harness.consumer())
        assert Counter(harness.published()) == Counter(harness.names())

    def test_a_drained_input_publishes_nothing_more(self, harness: Harness) -> None:
        consumer = harness.consumer()
        drain(consumer)
        harness.crash(consumer)
        drain(harness.consumer())
        assert Counter(harness.published()) == Counter(harness.names())


def drain(consumer: Transport[Any]) -> list[Chunk]:
    return completed(consumer, consumer.chunks())


def completed(consumer: Transport[Any], chunks: Iterator[Chunk]) -> list[Chunk]:
    """Complete what a consumer still hands out; returns it."""
    done = []
    for chunk in chunks:
        consumer.complete(chunk, outcomes_of(chunk))
        done.append(chunk)
    return done


def assert_come_first(names: list[Name], later: list[Chunk]) -> None:
    """Check that in each partition some records come before all others, and in their order."""
    all_later = [name for chunk in later for name in names_in(chunk)]
    for partition in {partition for partition, _ in names}:
        expected = [name for name in names if name[0] == partition]
        assert [name for name in all_later if name[0] == partition][: len(expected)] == expected


def names_in(chunk: Chunk) -> list[Name]:
    return [name_of(item) for item in chunk.items]
