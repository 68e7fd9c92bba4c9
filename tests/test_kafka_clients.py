"""Clients made from settings: what of them is ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner.default import DefaultPartitioner

from worker.transports.kafka.clients import _Partitioner

if TYPE_CHECKING:
    from collections.abc import Collection

OURS, THEIRS = _Partitioner(), DefaultPartitioner()


class Cluster:
    """What a partitioner asks of the client's metadata."""

    def __init__(self, partitions: int) -> None:
        self._partitions = range(partitions)

    def topics(self) -> Collection[str]:
        return {"labels"}

    def partitions_for_topic(self, _: str) -> Collection[int]:
        return set(self._partitions)

    available_partitions_for_topic = partitions_for_topic


@given(key=st.binary(), partitions=st.integers(1, 100))
def test_a_key_goes_where_the_clients_own_partitioner_sends_it(key: bytes, partitions: int) -> None:
    record = ("labels", key, key, b"", b"", Cluster(partitions))
    assert OURS.partition(*record) == OURS.partition(*record) == THEIRS.partition(*record)


def test_without_a_key_a_record_goes_anywhere() -> None:
    record = ("labels", None, None, b"", b"", Cluster(3))
    assert {OURS.partition(*record) for _ in range(100)} == {0, 1, 2}
