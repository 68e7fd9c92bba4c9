"""Tells of records that cannot be read, and ends a worker that can read none.

A single producer that writes nonsense must not stop a worker; a setting that is wrong, such as
`kafka.format`, must not let it turn a whole topic into dead letters without a word.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Final

from worker.errors import WorkerError
from worker.events.records import DeadLetter, ErrorKind
from worker.logs.logger import log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.events.records import Outcome

WINDOW_RECORDS: Final = 1000
_SECONDS_BETWEEN_LINES: Final = 10.0
# Kinds of dead letters that are about the form of a record, not about a message in the right form.
_FORMS: Final = {
    ErrorKind.NOT_UTF8,
    ErrorKind.NOT_JSON,
    ErrorKind.NO_TEXT,
    ErrorKind.BAD_ID,
}


class UnreadableRecords:
    """Watches what becomes of records.

    The window has as many of the last chunks as it takes to have 1,000 records.
    """

    def __init__(self, most: float) -> None:
        """Allow a share of a window to be unreadable; 1 allows everything."""
        self._most = most
        self._window: deque[tuple[int, Counter[ErrorKind]]] = deque()
        # What all chunks of the window come to.
        self._records = 0
        self._kinds: Counter[ErrorKind] = Counter()
        self._untold: Counter[ErrorKind] = Counter()
        self._told = 0.0

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Take note of the outcomes of a chunk that was completed, and log dead letters by kind.

        Raises:
            WorkerError: more than the allowed share of the window cannot be read.

        """
        if not outcomes:
            return
        kinds = Counter(each.kind for each in outcomes if isinstance(each, DeadLetter))
        self._tell(kinds)
        self._window.append((len(outcomes), kinds))
        self._records += len(outcomes)
        self._kinds.update(kinds)
        while self._records - self._window[0][0] >= WINDOW_RECORDS:
            records, kinds = self._window.popleft()
            self._records -= records
            self._kinds.subtract(kinds)
        if self._records >= WINDOW_RECORDS:
            self._judge()

    def _tell(self, kinds: Counter[ErrorKind]) -> None:
        self._untold += kinds
        now = time.monotonic()
        if self._untold and now - self._told >= _SECONDS_BETWEEN_LINES:
            log.warning("records became dead letters", **dict(self._untold))
            self._untold.clear()
            self._told = now

    def _judge(self) -> None:
        unreadable = {kind: self._kinds[kind] for kind in _FORMS}
        number = sum(unreadable.values())
        if number > self._most * self._records:
            most_of_them = max(unreadable, key=unreadable.__getitem__)
            raise WorkerError(
                f"{number} of the last {self._records} records cannot be read, most of them are "
                f"{most_of_them}; they are dead letters now, to be redriven",
                "see kafka.format, input.text_field and input.id_field; to go on nevertheless, set "
                "kafka.max_unreadable to 1",
            )
