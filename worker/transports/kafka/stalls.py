"""Finds out why no records come: the client gives none, or a transaction that is open hides them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from worker.errors import WorkerError
from worker.logs.logger import log
from worker.logs.stacks import log_stacks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kafka import TopicPartition


# Transactions of producers that are well end sooner.
_OPEN_TRANSACTION_SECONDS: Final = 10.0


def _standing(
    last: Mapping[TopicPartition, tuple[int, float]],
    offsets: Mapping[TopicPartition, int],
    passed: float,
) -> dict[TopicPartition, tuple[int, float]]:
    """Return offsets, and for how many seconds each is what it was at the last look.

    `last` is what this returned then, `passed` seconds ago.
    """
    standing = {}
    for partition, offset in offsets.items():
        before, seconds = last.get(partition, (offset, -passed))
        standing[partition] = (offset, seconds + passed if before == offset else 0.0)
    return standing


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
        behind = {each: offset for each, offset in positions.items() if lag[each]}
        self._waiting = _standing(self._waiting, behind, passed)
        stuck = sum(seconds > self._stuck_seconds for _, seconds in self._waiting.values())
        if stuck:
            log_stacks()
            raise WorkerError(
                f"stuck: partitions that have records, of which none has come for "
                f"{self._stuck_seconds:g} seconds: {stuck}",
                "start the worker again",
            )


class OpenTransactions:
    """Tells of transactions that stay open: committed records behind them are not read until they end."""

    def __init__(self) -> None:
        """Begin without any."""
        # Where each partition that hides records can be read to, and for how many seconds.
        self._standing: dict[TopicPartition, tuple[int, float]] = {}

    def look(
        self,
        ends: Mapping[TopicPartition, int],
        hidden: Mapping[TopicPartition, int],
        passed: float,
    ) -> None:
        """Compare with the last look, which was `passed` seconds ago, and log what stands still.

        `ends` is how far partitions can be read, `hidden` how many records come behind that.
        """
        last = self._standing
        hiding = {partition: ends[partition] for partition, number in hidden.items() if number}
        self._standing = _standing(last, hiding, passed)
        for partition, (end, seconds) in self._standing.items():
            _, before = last.get(partition, (end, 0.0))
            if before < _OPEN_TRANSACTION_SECONDS <= seconds:
                log.warning(
                    "a transaction of a producer stays open: what comes behind it waits",
                    topic=partition.topic,
                    partition=partition.partition,
                    offset=end,
                    records=hidden[partition],
                )
