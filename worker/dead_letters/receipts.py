"""Defines what a redrive remembers on the dead-letter topic itself.

In the transaction that sends records back, a redrive also writes a receipt behind their dead
letters, into the same partition. So a receipt exists exactly if the records were sent, and retention
never deletes it before the letters that it lists. Other redrives, whatever they select, read from it
that these letters have been sent. Offsets of a consumer group would expire after a week.
"""

from __future__ import annotations

import json
import math
from bisect import bisect
from collections import defaultdict
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import ValidationError

from worker.strict import Strict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kafka.consumer.fetcher import ConsumerRecord

# Partition and offset on the dead-letter topic.
Position: TypeAlias = tuple[int, int]
# A selection as JSON, and the number of a redrive of it.
_Redrive: TypeAlias = tuple[str, int]


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
        self.not_understood = 0
        self._sent: dict[_Redrive, _Offsets] = defaultdict(_Offsets)
        self._until: dict[_Redrive, Mapping[int, int]] = {}

    def add(self, record: ConsumerRecord) -> None:
        """Add a receipt, or count one that is not understood.

        Somebody else may have written that, or a newer worker, whose records may then be sent twice.
        """
        try:
            receipt = Receipt.model_validate_json(record.value or b"")
        except ValidationError:
            self.not_understood += 1
            return
        # A receipt stands behind the letters that it lists.
        if not all(0 <= first <= last < record.offset for first, last in receipt.sent):
            self.not_understood += 1
            return
        redrive = (_key(receipt.selection), receipt.number)
        self._until[redrive] = receipt.until
        self._sent[redrive].add(record.partition, receipt.sent)

    def last_number(self, selection: Mapping[str, Any]) -> int:
        """Return how many redrives of a selection there were."""
        return max((number for key, number in self._until if key == _key(selection)), default=0)

    def until(self, selection: Mapping[str, Any], number: int) -> Mapping[int, int]:
        """Return where the partitions ended when a redrive began."""
        return self._until.get((_key(selection), number), {})

    def has_sent(self, selection: Mapping[str, Any], number: int, position: Position) -> bool:
        """Return whether a redrive has sent the letter at a position."""
        redrive = (_key(selection), number)
        return redrive in self._sent and position in self._sent[redrive]

    def has_been_sent(self, position: Position) -> bool:
        """Return whether any redrive has sent the letter at a position."""
        return any(position in offsets for offsets in self._sent.values())


class _Offsets:
    """Offsets by partition, as runs: a few bytes may name more of them than there is memory for."""

    def __init__(self) -> None:
        self._added: list[tuple[int, int, int]] = []
        # Partition, first and last offset of runs that do not touch, in their order.
        self._runs: list[tuple[int, int, int]] = []

    def add(self, partition: int, runs: Iterable[tuple[int, int]]) -> None:
        self._added += ((partition, first, last) for first, last in runs)

    def __contains__(self, position: Position) -> bool:
        if self._added:
            self._runs, self._added = _merged([*self._runs, *self._added]), []
        partition, offset = position
        index = bisect(self._runs, (partition, offset, math.inf)) - 1
        if index < 0:
            return False
        found, _, last = self._runs[index]
        return found == partition and offset <= last


def _merged(runs: Iterable[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    merged: list[tuple[int, int, int]] = []
    for partition, first, last in sorted(runs):
        if merged and merged[-1][0] == partition and first <= merged[-1][2] + 1:
            merged[-1] = (partition, merged[-1][1], max(last, merged[-1][2]))
        else:
            merged.append((partition, first, last))
    return merged


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
