"""Stopping between two chunks when asked to by SIGINT or SIGTERM."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Remembers the first SIGINT or SIGTERM; a second one acts at once, as if there were none."""

    def __init__(self, on_request: Callable[[], None] = lambda: None) -> None:
        """Remember nothing yet.

        `on_request` is called with the first signal or request, in the middle of whatever the main
        thread does, or on another thread: it should only store something.
        """
        self.received: int | None = None
        self._on_request = on_request

    def __enter__(self) -> Self:
        """Take the signals over; only the main thread may do that."""
        # Read before any handler is set: a signal may come between two that are set.
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        for number in _SIGNALS:
            signal.signal(number, self._handle)
        if self.received is not None:
            self._let_the_next_act()
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """Return 128 and the signal's number, as a shell would."""
        return 128 + (self.received or 0)

    def request(self) -> None:
        """Ask to stop as SIGTERM does, from any thread; does nothing if that was asked before.

        Unlike a signal that a process sends to itself, this cannot meet one that has just come, be
        taken for the second, and end the process at once.
        """
        self._remember(signal.SIGTERM)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the handler's form
        self._let_the_next_act()
        self._remember(number)

    def _remember(self, number: int) -> None:
        if self.received is None:
            self.received = number
            self._on_request()

    def _let_the_next_act(self) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
