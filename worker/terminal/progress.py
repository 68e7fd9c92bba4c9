"""How a long command is coming along: a bar on a terminal, a plain line now and then otherwise."""

from __future__ import annotations

import sys
import time
from typing import Final

from tqdm import tqdm

from worker.terminal.sentences import say

_SECONDS_BETWEEN_LINES: Final = 10.0


class Progress:
    """Progress in bytes of input, with messages a second and the cache's hit rate."""

    def __init__(self, total_bytes: int | None, done_bytes: int = 0) -> None:
        """Start at `done_bytes` of a total; None where the total is not known."""
        self._total = total_bytes
        self._first = self._done = done_bytes
        self._started = self._told = time.monotonic()
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
        """Tell how many more messages are done, and how far into the input that is."""
        self._messages += messages
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"{self.rate:,.0f} messages/s, {hit_rate:.0%} hits", refresh=False
            )
            self._bar.update(done_bytes - self._done)
        self._done = done_bytes
        now = time.monotonic()
        if self._bar is None and now - self._told >= _SECONDS_BETWEEN_LINES:
            self._told = now
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
