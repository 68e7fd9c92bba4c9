"""Finds a client that gives no records although there are some and the brokers answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.errors import WorkerError
from worker.logs.stacks import log_stacks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kafka import TopicPartition


class StallDetector:
    """Counts the time in which a partition with lag stays where it is while nothing is in hand."""

    def __init__(self, stuck_seconds: float) -> None:
        """Allow `stuck_seconds` of that."""
        self._stuck_seconds = stuck_seconds
        self.reset()

    def reset(self) -> None:
        """Begin to count anew: partitions stand elsewhere now."""
        self._waiting: dict[TopicPartition, int] = {}
        self._seconds = 0.0

    def look(
        self,
        positions: Mapping[TopicPartition, int],
        lag: Mapping[TopicPartition, int],
        passed: float,
    ) -> None:
        """Compare positions with those of the last look, which was `passed` seconds ago.

        Raises:
            WorkerError: some partitions have not moved for too long.

        """
        waiting = {partition: offset for partition, offset in positions.items() if lag[partition]}
        stuck = sum(self._waiting.get(partition) == offset for partition, offset in waiting.items())
        self._waiting = waiting
        self._seconds = self._seconds + passed if stuck else 0.0
        if self._seconds > self._stuck_seconds:
            log_stacks()
            raise WorkerError(
                f"stuck: {stuck} partitions have records, and none has come for "
                f"{self._stuck_seconds:g} seconds",
                "start the worker again",
            )
