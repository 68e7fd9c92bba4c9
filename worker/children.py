"""Child processes: this program started again, and a pair of sockets between it and its parent.

`worker run --processes N` and `worker replay --processes N` start children with the arguments that
they got themselves, and one more, `--child NUMBER:END`: the child's number, counted from 0, and
the descriptor of its end of the sockets. It follows the command's name, before a `--` that would
make an operand of it. What goes over the sockets is up to the command. Either
side reads the end of the stream when the other is gone, however it went.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from worker.errors import ConfigurationError, ExitCode, WorkerError

if TYPE_CHECKING:
    from collections.abc import Sequence

_RECEIVE_BYTES: Final = 2**20


class ChildProcess:
    """A child as its parent sees it: the process, and the parent's end of the sockets."""

    def __init__(self, number: int, arguments: Sequence[str]) -> None:
        """Start the child; `arguments` are those of the parent's own command line.

        Raises:
            WorkerError: the system starts no process now.

        """
        self.number = number
        self.socket, childs_end = socket.socketpair()
        # False once the child has closed its end, which it does at the latest when it ends.
        self.connected = True
        # The module is named as it was for us, because -m alone looks into the current folder first.
        program = sys.orig_argv[1 : len(sys.orig_argv) - len(arguments)]
        child = ["--child", f"{number}:{childs_end.fileno()}"]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this very program
                [sys.executable, *program, *arguments[:1], *child, *arguments[1:]],
                pass_fds=[childs_end.fileno()],
                # A terminal's Ctrl-C is for the parent alone.
                start_new_session=True,
            )
        except OSError as error:
            self.socket.close()
            raise WorkerError(
                f"process {number} cannot be started: {error.strerror}",
                "see what limits processes and memory here",
            ) from None
        finally:
            childs_end.close()

    @property
    def exit_code(self) -> int | None:
        """Return how the process has ended, a signal as a negative number; None while it runs."""
        return self._process.poll()

    def receive(self) -> bytes:
        """Wait for what the child sends, up to 1 MiB; nothing when it has closed its end."""
        data = b""
        # A child that dies before it has read what was sent to it resets the connection.
        with suppress(ConnectionResetError):
            data = self.socket.recv(_RECEIVE_BYTES)
        self.connected = bool(data)
        return data

    def terminate(self) -> None:
        """Send the process SIGTERM."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process at once if it still runs, and close our end of the sockets."""
        self.socket.close()
        self._process.kill()
        self._process.wait()


def connect_to_parent(argument: str) -> tuple[int, socket.socket]:
    """Return a child's number and its end of the sockets, from the value of `--child`."""
    number, descriptor = argument.split(":")
    return int(number), socket.socket(fileno=int(descriptor))


def child_error(exit_code: int, problem: str, advice: str) -> WorkerError:
    """Return an error that makes the parent end with the same exit code as its child, 1 or 2."""
    kind = ConfigurationError if exit_code == ExitCode.WRONG_USAGE else WorkerError
    return kind(problem, advice)
