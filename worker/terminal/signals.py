"""Stopping between two chunks when asked to by SIGINT or SIGTERM."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType


class StopSignal:
    """Remembers the first SIGINT or SIGTERM; a second one acts at once, as if there were none."""

    def __init__(self, on_signal: Callable[[], None] = lambda: None) -> None:
        """Remember nothing yet; `on_signal` is called with the first."""
        self.received: int | None = None
        self._on_signal = on_signal

    def __enter__(self) -> Self:
        """Take the signals over."""
        self._before = {
            number: signal.signal(number, self._remember)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """Return 128 and the signal's number, as a shell would."""
        return 128 + (self.received or 0)

    def _remember(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the handler's form
        self.received = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._on_signal()
