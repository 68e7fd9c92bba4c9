"""What a redrive remembers, on the dead-letter topic itself.

In the transaction that sends records back, a redrive also writes a receipt behind their dead
letters, into the same partition. So a receipt is there exactly if the records went out; retention
never takes it before the letters that it tells of; and it tells other redrives, whatever they
select, that these letters have been sent. Offsets of a consumer group would expire after a week.
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

# A place on the dead-letter topic: partition and offset.
Position: TypeAlias = tuple[int, int]


class Receipt(Strict):
    """What one transaction of a redrive has sent of one partition.

    Redrives of the same selection are numbered from 1. `until` is where each partition ended when
    the redrive began: what comes later is none of its business.
    """

    selection: dict[str, Any]
    number: int
    until: dict[int, int]
    # First and last offset of each stretch.
    sent: list[tuple[int, int]]


class Ledger:
    """What the receipts say together."""

    def __init__(self) -> None:
        """Know of nothing yet."""
        self._sent: dict[tuple[str, int], set[Position]] = defaultdict(set)
        self._until: dict[tuple[str, int], Mapping[int, int]] = {}

    def add(self, record: ConsumerRecord) -> None:
        """Take note of a receipt.

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
    """Return the first and last of each run of consecutive offsets, of rising ones."""
    found: list[tuple[int, int]] = []
    for offset in offsets:
        if found and found[-1][1] == offset - 1:
            found[-1] = (found[-1][0], offset)
        else:
            found.append((offset, offset))
    return found


def _key(selection: Mapping[str, Any]) -> str:
    return json.dumps(selection, sort_keys=True)
