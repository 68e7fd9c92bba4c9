"""`worker run` with a flaw in its delivery, which the verifier must find.

The environment variable FLAW names it; without one the worker is as it should be.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from kafka.producer.transaction_manager import TransactionManager

from worker import cli
from worker.transports.base import ChunkAbandonedError
from worker.transports.kafka.publishers import AtLeastOnce, ExactlyOnce
from worker.transports.kafka.transport import KafkaTransport

if TYPE_CHECKING:
    from collections.abc import Callable

    from kafka import KafkaConsumer


def commit_first() -> None:
    """Commit before the labels are published."""
    publish = AtLeastOnce.publish

    def flawed(self: AtLeastOnce, publication: Any, positions: Any, *rest: Any) -> None:
        self._consumer().commit(dict(positions))
        publish(self, publication, positions, *rest)

    AtLeastOnce.publish = flawed  # type: ignore[assignment, method-assign]


def never_rewind() -> None:
    """Go on after an abandoned chunk from where the consumer stands."""
    rewind = KafkaTransport._rewind

    def flawed(self: KafkaTransport) -> bool:
        if not self.report.abandoned:
            return rewind(self)
        return self._publisher.prepare(1) is None

    KafkaTransport._rewind = flawed  # type: ignore[method-assign]


def ask_for_the_group_late() -> None:
    """Commit with the group's metadata as they are then, not as they were at the poll."""
    rewind, send = KafkaTransport._rewind, TransactionManager.send_offsets_to_transaction
    consumers: list[KafkaConsumer] = []

    def noting(self: KafkaTransport) -> bool:
        # Every consumer begins with this.
        consumers.append(self._member.consumer)
        return rewind(self)

    def flawed(self: TransactionManager, offsets: Any, _: Any) -> Any:
        return send(self, offsets, consumers[-1].group_metadata())

    KafkaTransport._rewind = noting  # type: ignore[method-assign]
    TransactionManager.send_offsets_to_transaction = flawed


def send_again() -> None:
    """Take a transaction for failed that may have been committed."""
    publish = ExactlyOnce.publish

    def flawed(self: ExactlyOnce, *rest: Any) -> None:
        try:
            publish(self, *rest)
        except ChunkAbandonedError:
            publish(self, *rest)

    ExactlyOnce.publish = flawed  # type: ignore[assignment, method-assign]


FLAWS: dict[str, Callable[[], None]] = {
    flaw.__name__: flaw for flaw in (commit_first, never_rewind, ask_for_the_group_late, send_again)
}

if __name__ == "__main__":
    if name := os.environ.get("FLAW"):
        FLAWS[name]()
    sys.exit(cli.main(sys.argv[1:]))
