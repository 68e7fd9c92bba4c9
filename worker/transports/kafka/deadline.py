"""Until when a piece of work may go on: to its own end, or until the process is asked to stop."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

from worker.transports.base import ChunkAbandonedError

if TYPE_CHECKING:
    from collections.abc import Callable

_SLICE_SECONDS: Final = 0.25


class Deadline:
    """The end of a piece of work and the end of all work, of which the earlier one counts.

    Both are points of the monotonic clock. They are compared when the time is asked for: whoever sets
    one of them, in whatever thread or signal handler, cannot undo the other.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        """Let the work end some seconds from now."""
        self._work_ends = time.monotonic() + seconds
        self._all_ends = math.inf

    @property
    def remaining(self) -> float:
        """Return the seconds that are left; 0 when the time is over."""
        return max(0.0, min(self._work_ends, self._all_ends) - time.monotonic())

    def begin(self, ends: float) -> None:
        """Begin a piece of work that must end by then."""
        self._work_ends = ends

    def stop_by(self, ends: float) -> None:
        """Let all work end by then."""
        self._all_ends = ends

    def shorten(self, seconds: float) -> None:
        """Let the work end some seconds from now at the latest."""
        self._work_ends = min(self._work_ends, time.monotonic() + seconds)

    def check(self, problem: str) -> None:
        """Do nothing while there is time.

        Raises:
            ChunkAbandonedError: the time is over; it says the problem.

        """
        if not self.remaining:
            raise ChunkAbandonedError(problem)

    def wait(self, wait: Callable[[float], bool]) -> bool:
        """Call `wait` with short times until it returns true or the time is over; return which."""
        while not (done := wait(min(_SLICE_SECONDS, self.remaining))) and self.remaining:
            pass
        return done
