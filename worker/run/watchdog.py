"""Ends a process that hangs, or that does not stop in time when asked to."""

from __future__ import annotations

import math
import os
import threading
import time
from typing import TYPE_CHECKING, Final, Self

from worker.logs.logger import log
from worker.logs.stacks import log_stacks

if TYPE_CHECKING:
    from collections.abc import Callable

_INTERVAL: Final = 0.2
_CLOSING_SECONDS: Final = 2.0


class Watchdog:
    """A thread that expects a beat from each turn of the loop, and else ends the process.

    Each of its two times is only stored by others and only read by its thread, so that neither a
    signal handler nor a thread can undo what another has stored.
    """

    def __init__(self, stuck_seconds: float, in_hand: Callable[[], bool]) -> None:
        """Expect no turn to take `stuck_seconds`; `in_hand` says whether work is unfinished."""
        self._stuck_seconds = stuck_seconds
        self._in_hand = in_hand
        self._beat = time.monotonic()
        self._stop_by = math.inf
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        """Start to watch; a time to stop by that was set before holds."""
        self.beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self._done.set()
        self._thread.join()

    @property
    def age(self) -> float:
        """Return the seconds since the last beat."""
        return time.monotonic() - self._beat

    def beat(self) -> None:
        """Note that the loop has gone round."""
        self._beat = time.monotonic()

    def stop_by(self, ends: float) -> None:
        """End the process 2 s after a point of the monotonic clock; callable at any time.

        The 2 s are for closing. The exit code is 1 if work is unfinished then, and else 0.
        """
        self._stop_by = ends + _CLOSING_SECONDS

    def _watch(self) -> None:
        while not self._done.wait(_INTERVAL):
            if time.monotonic() > self._stop_by:
                unfinished = self._in_hand()
                log.warning("stopped past the deadline", uncommitted=unfinished)
                os._exit(1 if unfinished else 0)
            if self.age > self._stuck_seconds:
                log.error("stuck: a call has not returned", seconds=round(self.age))
                log_stacks()
                os._exit(1)
