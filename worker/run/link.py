"""Starting this program again as a child, and the link to it: a pair of sockets.

The link of `worker run --processes N` is here, that of `worker replay` in `shares`. The child tells
its status every second, a JSON line each. The parent tells nothing: when it shuts its end down, or
is gone, however it went, the child reads the end of the stream and stops as if asked to.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from worker.telemetry.metrics import Status

_INTERVAL: Final = 1.0


def start_child(
    number: int, arguments: Sequence[str]
) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start this program again with `--child`; returns our end of a pair of sockets, and the process.

    `arguments` are those of the command; the child takes its end over from `--child NUMBER:END`.
    """
    ours, theirs = socket.socketpair()
    # Found as Python has found it for us: -m alone would look into the current folder first.
    program = sys.orig_argv[1 : len(sys.orig_argv) - len(arguments)]
    with theirs:
        process = subprocess.Popen(  # noqa: S603 - this very program
            [sys.executable, *program, *arguments, "--child", f"{number}:{theirs.fileno()}"],
            pass_fds=[theirs.fileno()],
            # A terminal's Ctrl-C is for the parent alone.
            start_new_session=True,
        )
    return ours, process


class Link:
    """The child's end."""

    def __init__(self, process: int, end: socket.socket) -> None:
        """Keep the child's number and its socket."""
        self.process = process
        self._socket = end

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take over the socket that the parent has passed on: its number and ours."""
        process, descriptor = argument.split(":")
        return cls(int(process), socket.socket(fileno=int(descriptor)))

    @contextmanager
    def telling(self, status: Callable[[], Status]) -> Iterator[None]:
        """Tell the parent how it goes, and stop this process when the parent is gone."""
        done = threading.Event()
        threads = [
            threading.Thread(target=self._tell, args=(status, done), name="link", daemon=True),
            threading.Thread(target=self._stop_when_alone, name="lifeline", daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            done.set()

    def _tell(self, status: Callable[[], Status], done: threading.Event) -> None:
        with suppress(OSError):
            while not done.is_set():
                self._socket.sendall(json.dumps(asdict(status())).encode() + b"\n")
                done.wait(_INTERVAL)

    def _stop_when_alone(self) -> None:
        with suppress(OSError):
            self._socket.recv(1)
        # A second signal would act at once: see StopSignal.
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            os.kill(os.getpid(), signal.SIGTERM)
