"""Finds a client that gives no records although there are some and the brokers answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.errors import WorkerError
from worker.logs.stacks import log_stacks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kafka import TopicPartition


class StallDetector:
    """Counts for how long each partition with lag stays where it is while nothing is in hand."""

    def __init__(self, stuck_seconds: float) -> None:
        """Allow a partition to stand still for `stuck_seconds`."""
        self._stuck_seconds = stuck_seconds
        self.reset()

    def reset(self) -> None:
        """Begin to count anew: partitions stand elsewhere now."""
        # Where each partition with lag stands, and for how many seconds it has.
        self._waiting: dict[TopicPartition, tuple[int, float]] = {}

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
        waiting = {}
        for partition, offset in positions.items():
            if lag[partition]:
                before, seconds = self._waiting.get(partition, (offset, -passed))
                waiting[partition] = (offset, seconds + passed if before == offset else 0.0)
        self._waiting = waiting
        stuck = sum(seconds > self._stuck_seconds for _, seconds in waiting.values())
        if stuck:
            log_stacks()
            raise WorkerError(
                f"stuck: partitions that have records, of which none has come for "
                f"{self._stuck_seconds:g} seconds: {stuck}",
                "start the worker again",
            )
