"""`worker run --processes N`: a parent that starts consumer processes and keeps them running.

The children are what `worker run` is without it; Kafka shares the partitions out among them. The
parent restarts one that dies, passes signals on, and answers for all of them at one address.
"""

from __future__ import annotations

import json
import selectors
import signal
import socket
import time
from typing import TYPE_CHECKING, Final

from worker.errors import ConfigurationError, ExitCode, WorkerError
from worker.logs.logger import log
from worker.run.link import Link, start_child
from worker.run.process import stream
from worker.telemetry.metrics import Status
from worker.telemetry.server import serving
from worker.terminal.signals import StopSignal

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

    from worker.settings.schema import Settings

_INTERVAL: Final = 0.2
# A child that has lived so long has not died of its start.
_STABLE_SECONDS: Final = 60.0
# More than a message needs that kills its process until it is found.
_DEATHS_IN_A_ROW: Final = 6
# Of a child's silence; its watchdog speaks earlier where it can.
_SILENT_SECONDS: Final = 60.0
_KILL_AFTER_SECONDS: Final = 3.0


def run(settings: Settings, arguments: Sequence[str], child: str | None) -> int:
    """Run as one process, as one of several, or as the parent of several; returns the exit code.

    `arguments` are those of this command; `child` tells a child which it is.

    Raises:
        ConfigurationError: the settings cannot work.
        WorkerError: what a restart would not mend.

    """
    if child:
        return stream(settings, Link.parse(child))
    if settings.run.processes == 1:
        return stream(settings)
    return _supervise(settings, arguments)


def _supervise(settings: Settings, arguments: Sequence[str]) -> int:
    children = [_Child(number, arguments) for number in range(settings.run.processes)]
    with (
        serving(settings.run.listen, lambda: [child.status() for child in children]),
        StopSignal() as stop,
    ):
        try:
            while stop.received is None:
                for child in children:
                    child.look_after()
                _listen(children)
            return _stop(children, settings.run.stop_seconds)
        except WorkerError:
            _stop(children, settings.run.stop_seconds)
            raise
        finally:
            for child in children:
                child.kill()


def _listen(children: Sequence[_Child]) -> None:
    with selectors.DefaultSelector() as selector:
        for child in children:
            if child.link is not None:
                selector.register(child.link, selectors.EVENT_READ, child)
        for key, _ in selector.select(_INTERVAL):
            key.data.read(key.fileobj)


def _stop(children: Sequence[_Child], seconds: float) -> int:
    """Ask all to stop, and wait as long as they may take; returns the exit code."""
    for child in children:
        child.ask_to_stop()
    ends = time.monotonic() + seconds + _KILL_AFTER_SECONDS
    while any(child.running for child in children) and time.monotonic() < ends:
        _listen(children)
    codes = [child.end() for child in children]
    log.info("stopped", exit_codes=codes)
    return int(any(codes))


class _Child:
    """One consumer process, and the next when it has died."""

    def __init__(self, number: int, arguments: Sequence[str]) -> None:
        self.link: socket.socket | None = None
        self._number = number
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._not_before = 0.0
        self._deaths = 0
        # When it told something, or we did something about it.
        self._heard = time.monotonic()
        self._status: Status | None = None
        self._unread = b""

    def status(self) -> Status:
        """Return what the child told last."""
        status = self._status
        silent = time.monotonic() - self._heard > _SILENT_SECONDS
        if status is None:
            # One that starts is given the time that one may be silent.
            return Status(self._number, live=not silent, ready=False, problem="not running yet")
        if silent:
            return Status(self._number, live=False, ready=False, problem="silent")
        return status

    @property
    def running(self) -> bool:
        """Return whether the process has not ended."""
        return self._process is not None and self._process.poll() is None

    def look_after(self) -> None:
        """Start the child, or see how it has ended.

        Raises:
            ConfigurationError: it says that the configuration is wrong.
            WorkerError: it dies again and again.

        """
        if self._process is None:
            if time.monotonic() >= self._not_before:
                self._start()
            return
        code = self._process.poll()
        if code is None:
            return
        self._drop()
        if code == ExitCode.WRONG_USAGE:
            raise ConfigurationError(
                f"process {self._number} cannot start", "see what it says above"
            )
        lived = time.monotonic() - self._started
        self._deaths = 1 if lived > _STABLE_SECONDS else self._deaths + 1
        log.error("process died", process=self._number, exit_code=code, times=self._deaths)
        if self._deaths >= _DEATHS_IN_A_ROW:
            raise WorkerError(
                f"process {self._number} has died {self._deaths} times in a row",
                "see what it says above",
            )
        self._not_before = time.monotonic() + 2.0 ** (self._deaths - 1)

    def read(self, link: socket.socket) -> None:
        """Read what the child tells."""
        data = link.recv(2**20)
        *lines, self._unread = (self._unread + data).split(b"\n")
        if lines:
            self._status = Status(**json.loads(lines[-1]))
            self._heard = time.monotonic()
        if not data:
            link.close()
            self.link = None

    def ask_to_stop(self) -> None:
        """Ask the process to stop, if it runs."""
        if self._process is None:
            return
        if self._status is None:
            self._process.terminate()
        elif self.link is not None:
            # Not a signal: it may have had one already, with the parent, and a second acts at once.
            self.link.shutdown(socket.SHUT_WR)

    def end(self) -> int:
        """Kill the process where it has not stopped; returns its exit code."""
        if self._process is None:
            return 0
        code = self._process.poll()
        if code is None:
            log.error("process did not stop in time", process=self._number)
            self.kill()
            return 1
        # One that has not begun ends of the signal itself.
        return 0 if code == -signal.SIGTERM and self._status is None else code

    def kill(self) -> None:
        """End the child at once, if it still runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._drop()

    def _start(self) -> None:
        self.link, self._process = start_child(self._number, self._arguments)
        self._started = self._heard = time.monotonic()

    def _drop(self) -> None:
        self._process = None
        self._heard = time.monotonic()
        self._status = None
        self._unread = b""
        if self.link is not None:
            self.link.close()
            self.link = None
