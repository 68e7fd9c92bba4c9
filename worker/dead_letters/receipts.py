"""Defines what a redrive remembers on the dead-letter topic itself.

In the transaction that sends records back, a redrive also writes a receipt behind their dead
letters, into the same partition. So a receipt exists exactly if the records were sent, and retention
never deletes it before the letters that it lists. Other redrives, whatever they select, read from it
that these letters have been sent. Offsets of a consumer group would expire after a week.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import ValidationError

from worker.errors import WorkerError
from worker.strict import Strict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kafka.consumer.fetcher import ConsumerRecord

# Partition and offset on the dead-letter topic.
Position: TypeAlias = tuple[int, int]


class Receipt(Strict):
    """What one transaction of a redrive has sent of one partition.

    Redrives of the same selection are numbered from 1. `until` has the offset at which each
    partition ended when the redrive began; the redrive leaves out what comes later.
    """

    selection: dict[str, Any]
    number: int
    until: dict[int, int]
    # The first and the last offset of each run of consecutive offsets.
    sent: list[tuple[int, int]]


class Ledger:
    """Sums up what all receipts say."""

    def __init__(self) -> None:
        """Start without any receipt."""
        self._sent: dict[tuple[str, int], set[Position]] = defaultdict(set)
        self._until: dict[tuple[str, int], Mapping[int, int]] = {}

    def add(self, record: ConsumerRecord) -> None:
        """Add a receipt.

        Raises:
            WorkerError: it cannot be understood, so that records might be sent twice.

        """
        try:
            receipt = Receipt.model_validate_json(record.value or b"")
        except ValidationError:
            raise WorkerError(
                f"what a redrive left at offset {record.offset} of partition {record.partition} "
                f"of {record.topic} is not understood",
                "a newer worker may have written it: use that one",
            ) from None
        redrive = (_key(receipt.selection), receipt.number)
        self._until[redrive] = receipt.until
        for first, last in receipt.sent:
            self._sent[redrive].update((record.partition, o) for o in range(first, last + 1))

    def last_number(self, selection: Mapping[str, Any]) -> int:
        """Return how many redrives of a selection there were."""
        return max((number for key, number in self._until if key == _key(selection)), default=0)

    def until(self, selection: Mapping[str, Any], number: int) -> Mapping[int, int]:
        """Return where the partitions ended when a redrive began."""
        return self._until.get((_key(selection), number), {})

    def sent_by(self, selection: Mapping[str, Any], number: int) -> set[Position]:
        """Return what a redrive has sent."""
        return self._sent.get((_key(selection), number), set())

    def sent(self) -> set[Position]:
        """Return what any redrive has sent."""
        return set().union(*self._sent.values())


def stretches(offsets: Iterable[int]) -> list[tuple[int, int]]:
    """Return the first and last of each run of consecutive offsets; the offsets must rise."""
    found: list[tuple[int, int]] = []
    for offset in offsets:
        if found and found[-1][1] == offset - 1:
            found[-1] = (found[-1][0], offset)
        else:
            found.append((offset, offset))
    return found


def _key(selection: Mapping[str, Any]) -> str:
    return json.dumps(selection, sort_keys=True)
