"""The transport in memory holds the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.transports.contract import (
    RECORDS_A_PARTITION,
    Harness,
    Name,
    TransportContract,
    drain,
    name_of,
    outcomes_of,
    value_of,
)
from tests.transports.memory import MemoryTopic, MemoryTransport
from worker.events.decoding import Fields, json_decoder
from worker.transports.base import ChunkAbandonedError

if TYPE_CHECKING:
    from worker.transports.base import Transport


class MemoryHarness(Harness):
    def __init__(self, partitions: int = 3) -> None:
        self.partitions = partitions
        self.topic = MemoryTopic(
            [[value_of(p, n) for n in range(RECORDS_A_PARTITION)] for p in range(partitions)]
        )

    def consumer(self) -> MemoryTransport:
        return MemoryTransport(self.topic, json_decoder(Fields()))

    def crash(self, consumer: Transport[Any]) -> None:
        assert isinstance(consumer, MemoryTransport)
        consumer.close()

    def rebalance(self) -> None:
        self.consumer()

    def fail_next_complete(self) -> None:
        # A member that comes and goes fences what is in hand, and takes nothing with it.
        self.consumer().close()

    def published(self) -> list[Name]:
        return [name_of(outcome) for outcome in self.topic.outcomes]


class TestMemoryTransport(TransportContract):
    @pytest.fixture
    def harness(self) -> MemoryHarness:
        return MemoryHarness()


def test_members_share_the_partitions() -> None:
    harness = MemoryHarness(partitions=4)
    first, second = harness.consumer(), harness.consumer()
    shares = [harness.topic.assignment(first), harness.topic.assignment(second)]
    assert sorted(shares[0] + shares[1]) == [0, 1, 2, 3]
    assert all(len(share) == 2 for share in shares)


def test_a_member_that_lost_its_partitions_cannot_complete() -> None:
    harness = MemoryHarness(partitions=1)
    consumer = harness.consumer()
    chunk = next(consumer.chunks())
    consumer.close()
    with pytest.raises(ChunkAbandonedError):
        consumer.complete(chunk, outcomes_of(chunk))
    assert harness.published() == []


def test_a_member_without_partitions_has_no_chunks() -> None:
    harness = MemoryHarness(partitions=1)
    harness.consumer()
    assert drain(harness.consumer()) == []
