"""What a child of `worker run --processes N` does for its parent: it reports, and follows it.

The child sends its status once a second, as one line of JSON. The parent sends nothing. When it
shuts its end of the sockets down, or is gone, the child reads the end of the stream, and stops as
if it had been asked to by a signal.
"""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Final, Self

from worker.children import connect_to_parent

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from worker.telemetry.metrics import Status

_INTERVAL: Final = 1.0


class ParentConnection:
    """A child's connection to the process that started it."""

    def __init__(self, child_number: int, end: socket.socket) -> None:
        """Use the child's end of a pair of sockets."""
        self.child_number = child_number
        self._socket = end

    @classmethod
    def open(cls, argument: str) -> Self:
        """Take over the socket that the value of `--child` names."""
        return cls(*connect_to_parent(argument))

    @contextmanager
    def reporting(self, status: Callable[[], Status], stop: Callable[[], None]) -> Iterator[None]:
        """Report the status while the block runs, and call `stop` when the parent wants an end.

        `status` and `stop` are called on threads of their own.
        """
        done = threading.Event()
        threads = [
            threading.Thread(target=self._report, args=(status, done), name="report", daemon=True),
            threading.Thread(target=self._follow, args=(stop,), name="lifeline", daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            done.set()

    def _report(self, status: Callable[[], Status], done: threading.Event) -> None:
        with suppress(OSError):
            while not done.is_set():
                self._socket.sendall(json.dumps(asdict(status())).encode() + b"\n")
                done.wait(_INTERVAL)

    def _follow(self, stop: Callable[[], None]) -> None:
        with suppress(OSError):
            self._socket.recv(1)
        stop()
