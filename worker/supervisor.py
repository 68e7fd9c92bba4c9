"""`worker run --processes N`: a parent that starts consumer processes and keeps them running.

The children are what `worker run` is without it; Kafka shares the partitions out among them. The
parent restarts one that dies, passes signals on, and answers for all of them at one address.
"""

from __future__ import annotations

import json
import selectors
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

from worker.errors import WorkerError
from worker.link import Link
from worker.signals import StopSignal
from worker.stream import stream
from worker.telemetry.logs import log
from worker.telemetry.metrics import Status
from worker.telemetry.server import serving

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.settings import Settings

_INTERVAL: Final = 0.2
_LONGEST_BACKOFF: Final = 30.0
# A child that has lived so long has not died of its start.
_STABLE_SECONDS: Final = 60.0
# More than a message needs that kills its process until it is found.
_DEATHS_IN_A_ROW: Final = 6
# Of a child's silence; its watchdog speaks earlier where it can.
_SILENT_SECONDS: Final = 60.0
_KILL_AFTER_SECONDS: Final = 5.0
_WRONG_CONFIGURATION: Final = 2


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
            key.data.read()
    if not any(child.link for child in children):
        time.sleep(_INTERVAL)


def _stop(children: Sequence[_Child], seconds: float) -> int:
    """Ask all to stop, and wait as long as they may take; returns the exit code."""
    for child in children:
        child.send(signal.SIGTERM)
    ends = time.monotonic() + seconds + _KILL_AFTER_SECONDS
    codes = [child.wait(ends) for child in children]
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
        self._told = 0.0
        self._status: Status | None = None
        self._unread = b""

    def status(self) -> Status:
        """Return what the child told last."""
        status = self._status
        if status is None:
            # One that starts is given the time that one may be silent.
            starting = time.monotonic() - self._started < _SILENT_SECONDS
            return Status(self._number, starting, ready=False, problem="not running yet")
        if time.monotonic() - self._told > _SILENT_SECONDS:
            return Status(self._number, live=False, ready=False, problem="silent")
        return status

    def look_after(self) -> None:
        """Start the child, or see how it has ended.

        Raises:
            WorkerError: it dies again and again, or the configuration is wrong.

        """
        if self._process is None:
            if time.monotonic() >= self._not_before:
                self._start()
            return
        code = self._process.poll()
        if code is None:
            return
        self._drop()
        if code == _WRONG_CONFIGURATION:
            raise WorkerError(f"process {self._number} cannot start", "see what it says above")
        lived = time.monotonic() - self._started
        self._deaths = 1 if lived > _STABLE_SECONDS else self._deaths + 1
        log.error("process died", process=self._number, exit_code=code, times=self._deaths)
        if self._deaths >= _DEATHS_IN_A_ROW:
            raise WorkerError(
                f"process {self._number} has died {self._deaths} times in a row",
                "see what it says above",
            )
        self._not_before = time.monotonic() + min(2.0 ** (self._deaths - 1), _LONGEST_BACKOFF)

    def read(self) -> None:
        """Read what the child tells."""
        if self.link is None:
            return
        try:
            data = self.link.recv(2**20)
        except OSError:
            data = b""
        *lines, self._unread = (self._unread + data).split(b"\n")
        if lines:
            self._status = Status(**json.loads(lines[-1]))
            self._told = time.monotonic()
        if not data:
            self.link.close()
            self.link = None

    def send(self, number: signal.Signals) -> None:
        """Send a signal, where there is somebody."""
        if self._process is not None:
            self._process.send_signal(number)

    def wait(self, ends: float) -> int:
        """Wait until the child has ended, and kill it where it does not; returns its exit code."""
        if self._process is None:
            return 0
        try:
            return self._process.wait(max(0.0, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.error("process did not stop in time", process=self._number)
            self.kill()
            return 1

    def kill(self) -> None:
        """End the child at once, if it still runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._drop()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        self._process = subprocess.Popen(  # noqa: S603 - this very program
            [
                *(sys.executable, "-m", "worker", *self._arguments),
                *("--child", f"{self._number}:{theirs.fileno()}"),
            ],
            pass_fds=[theirs.fileno()],
            # A terminal's Ctrl-C is for the parent, which passes it on once.
            start_new_session=True,
        )
        theirs.close()
        ours.settimeout(0)
        self.link = ours
        self._started = time.monotonic()

    def _drop(self) -> None:
        self._process = None
        self._status = None
        self._unread = b""
        if self.link is not None:
            self.link.close()
            self.link = None
