"""How much to take at once, and how long to wait after a failure."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from worker.logs.logger import log

if TYPE_CHECKING:
    from typing import Protocol

    class Reported(Protocol):
        """The fields in which failures are reported."""

        problem: str | None
        retries: int


FIRST_CHUNK_RECORDS: Final = 64
FIRST_PAUSE_SECONDS: Final = 0.2
LONGEST_PAUSE_SECONDS: Final = 5.0
_SECONDS_BETWEEN_COMPLAINTS: Final = 10.0


class ChunkSize:
    """Sizes chunks: as many records as this process labels in the time that a label may wait."""

    def __init__(self, most_records: int, seconds: float) -> None:
        """Begin small: how fast the process labels is not known yet."""
        self.records = min(FIRST_CHUNK_RECORDS, most_records)
        self._most_records = most_records
        self._seconds = seconds

    def completed(self, records: int, seconds: float) -> None:
        """Learn from a chunk that took so long; an empty one teaches nothing."""
        if records:
            wanted = int(records / max(seconds, 1e-6) * self._seconds)
            self.records = min(max(1, wanted), self._most_records)

    def abandoned(self) -> None:
        """Halve the size: a chunk that was too much for its time would be again."""
        self.records = max(1, self.records // 2)


class Retries:
    """Failures of the brokers: reported, and followed by pauses that double up to some seconds."""

    def __init__(self, reported: Reported) -> None:
        """Write the problem and the number of retries to `reported`."""
        self._reported = reported
        self._pause = FIRST_PAUSE_SECONDS
        self._not_before = 0.0
        self._logged = 0.0

    @property
    def pausing(self) -> bool:
        """Return whether it is too early to try again."""
        return time.monotonic() < self._not_before

    def report(self, problem: str) -> None:
        """Report something that failed and will be tried again; one problem is not logged too often."""
        self._reported.retries += 1
        now = time.monotonic()
        again = problem == self._reported.problem
        if not again or now - self._logged > _SECONDS_BETWEEN_COMPLAINTS:
            self._logged = now
            log.warning("waiting", problem=problem)
        self._reported.problem = problem

    def pause(self) -> None:
        """Wait before the next try, twice as long as after the failure before."""
        self._not_before = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    def succeeded(self) -> None:
        """Let the next pause be short again."""
        self._pause = FIRST_PAUSE_SECONDS
