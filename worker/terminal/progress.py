"""Shows how far a long command is: by a bar on a terminal, and else by a line every 10 seconds."""

from __future__ import annotations

import sys
import time
from typing import Final

from tqdm import tqdm

from worker.terminal.sentences import say

_SECONDS_BETWEEN_LINES: Final = 10.0


class Progress:
    """Shows progress in bytes of input, with messages a second and the hit rate of the cache."""

    def __init__(self, total_bytes: int | None, done_bytes: int = 0) -> None:
        """Start at `done_bytes` of `total_bytes`, which is None where nobody knows it."""
        self._total = total_bytes
        self._first = self._done = done_bytes
        self._started = self._last_line = time.monotonic()
        self._messages = 0
        self._bar = (
            tqdm(
                total=total_bytes,
                initial=done_bytes,
                unit="B",
                unit_scale=True,
                file=sys.stderr,
                leave=False,
                bar_format="{percentage:3.0f}% |{bar}| {remaining} left{postfix}"
                if total_bytes
                else "{elapsed}{postfix}",
            )
            if sys.stderr.isatty()
            else None
        )

    @property
    def rate(self) -> float:
        """Return the messages a second so far."""
        return self._messages / max(time.monotonic() - self._started, 1e-9)

    def update(self, messages: int, done_bytes: int, hit_rate: float) -> None:
        """Count messages that are done now; in all, `done_bytes` of the input are done.

        `hit_rate` is the share of texts so far that a cache answered, from 0 to 1.
        """
        self._messages += messages
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"{self.rate:,.0f} messages/s, {hit_rate:.0%} hits", refresh=False
            )
            self._bar.update(done_bytes - self._done)
        self._done = done_bytes
        now = time.monotonic()
        if self._bar is None and now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            say(self._line(hit_rate))

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

    def _line(self, hit_rate: float) -> str:
        line = f"{self._messages:,} messages, {self.rate:,.0f} messages/s, {hit_rate:.0%} hits"
        read = self._done - self._first
        if self._total and read:
            elapsed = time.monotonic() - self._started
            left = elapsed * (self._total - self._done) / read
            line += f", {self._done / self._total:.0%} done, {left:,.0f} s left"
        return line
