"""`worker run --processes N`: a parent that starts consumer processes and keeps them running.

Each child does what `worker run` does as one process, and Kafka shares the partitions out among
them. The parent restarts a child that dies, passes a request to stop on, and answers for all of
them at one address.
"""

from __future__ import annotations

import json
import selectors
import signal
import socket
import time
from typing import TYPE_CHECKING, Final

from worker.children import ChildProcess, child_error
from worker.errors import ConfigurationError, WorkerError
from worker.logs.logger import log
from worker.run.consumer import ConsumerProcess
from worker.run.parent import ParentConnection
from worker.telemetry.metrics import Status
from worker.telemetry.server import serving
from worker.terminal.signals import StopSignal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.settings.schema import Settings

_INTERVAL: Final = 0.2
# A child that has lived for so long has not died of its start, so its deaths are counted anew.
_STABLE_SECONDS: Final = 60.0
# A message that kills its process is found after fewer deaths than this.
_DEATHS_IN_A_ROW: Final = 6
# A child that has sent no status for so long is not live. Where its watchdog can, it ends the
# process earlier.
_SILENT_SECONDS: Final = 60.0
# A child may take this much longer than `stop_seconds` before it is killed: its watchdog ends it
# 2 s after them.
_KILL_AFTER_SECONDS: Final = 3.0


def run(settings: Settings, arguments: Sequence[str], child: str | None) -> int:
    """Run as one process, as one of several, or as the parent of several; returns the exit code.

    `arguments` are those of this command line; `child` is the value of `--child`, which a parent
    gives to each of its children.

    Raises:
        ConfigurationError: the settings cannot work.
        WorkerError: an error that a restart would not mend.

    """
    if child:
        return ConsumerProcess(settings, ParentConnection.open(child)).run()
    if settings.run.processes == 1:
        return ConsumerProcess(settings).run()
    return _supervise(settings, arguments)


def _supervise(settings: Settings, arguments: Sequence[str]) -> int:
    children = [_ConsumerChild(number, arguments) for number in range(settings.run.processes)]
    with (
        # First, so that who is seen to answer can be asked to stop.
        StopSignal() as stop,
        serving(
            settings.run.listen,
            settings.run.allowed_hosts,
            lambda: [child.status() for child in children],
        ),
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


def _listen(children: Sequence[_ConsumerChild]) -> None:
    with selectors.DefaultSelector() as selector:
        for child in children:
            if child.socket is not None:
                selector.register(child.socket, selectors.EVENT_READ, child)
        for key, _ in selector.select(_INTERVAL):
            key.data.read()


def _stop(children: Sequence[_ConsumerChild], seconds: float) -> int:
    """Ask all children to stop, and wait for them; returns 1 if one failed or was killed."""
    for child in children:
        child.ask_to_stop()
    ends = time.monotonic() + seconds + _KILL_AFTER_SECONDS
    while any(child.running for child in children) and time.monotonic() < ends:
        _listen(children)
    codes = [child.end() for child in children]
    log.info("stopped", exit_codes=codes)
    return int(any(codes))


class _ConsumerChild:
    """The child of one number: the process that runs, and the next one after it has died."""

    def __init__(self, number: int, arguments: Sequence[str]) -> None:
        self._number = number
        self._arguments = arguments
        self._process: ChildProcess | None = None
        self._started = 0.0
        self._not_before = 0.0
        self._deaths = 0
        # When the child last sent a status, or was started, or was found dead.
        self._heard = time.monotonic()
        self._status: Status | None = None
        self._unread = b""

    def status(self) -> Status:
        """Return the last status that the child sent, or one that says that it is silent."""
        status = self._status
        silent = time.monotonic() - self._heard > _SILENT_SECONDS
        if status is None:
            # A start may take as long as a child may be silent.
            return Status(self._number, live=not silent, ready=False, problem="not running yet")
        if silent:
            return Status(self._number, live=False, ready=False, problem="silent")
        return status

    @property
    def socket(self) -> socket.socket | None:
        """Return the socket from which there may be something to read."""
        return self._process.socket if self._process and self._process.connected else None

    @property
    def running(self) -> bool:
        """Return whether the process has not ended."""
        return self._process is not None and self._process.exit_code is None

    def look_after(self) -> None:
        """Start the child where it does not run, or take note of how it has ended.

        Raises:
            ConfigurationError: the child ended because the configuration is wrong.
            WorkerError: the child has died six times in a row.

        """
        if self._process is None:
            if time.monotonic() >= self._not_before:
                self._start()
            return
        code = self._process.exit_code
        if code is None:
            return
        self.kill()
        error = child_error(code, f"process {self._number} cannot start", "see what it says above")
        if isinstance(error, ConfigurationError):
            raise error
        self._count_death("process died", exit_code=code)

    def _count_death(self, event: str, **details: object) -> None:
        lived = time.monotonic() - self._started
        self._deaths = 1 if lived > _STABLE_SECONDS else self._deaths + 1
        log.error(event, process=self._number, times=self._deaths, **details)
        if self._deaths >= _DEATHS_IN_A_ROW:
            raise WorkerError(
                f"process {self._number} has died {self._deaths} times in a row",
                "see what it says above",
            )
        self._not_before = time.monotonic() + 2.0 ** (self._deaths - 1)

    def read(self) -> None:
        """Read what the child has sent, and keep the last status of it."""
        if self._process is None:
            return
        *lines, self._unread = (self._unread + self._process.receive()).split(b"\n")
        if lines:
            self._status = Status(**json.loads(lines[-1]))
            self._heard = time.monotonic()

    def ask_to_stop(self) -> None:
        """Ask the process to stop, if it runs."""
        if self._process is None:
            return
        if self._status is None:
            self._process.terminate()
        elif self._process.connected:
            # A signal would not do: the child may have had one already, together with the parent,
            # and a second one acts at once.
            self._process.socket.shutdown(socket.SHUT_WR)

    def end(self) -> int:
        """Kill the process if it has not stopped; returns its exit code, 1 for one that is killed."""
        if self._process is None:
            return 0
        code = self._process.exit_code
        if code is None:
            log.error("process did not stop in time", process=self._number)
            self.kill()
            return 1
        # A child that has not begun has not taken signals over yet, and ends of this one itself.
        return 0 if code == -signal.SIGTERM and self._status is None else code

    def _start(self) -> None:
        self._started = self._heard = time.monotonic()
        try:
            self._process = ChildProcess(self._number, self._arguments)
        except WorkerError as error:
            self._count_death("process not started", problem=str(error))

    def kill(self) -> None:
        """End the process at once if it still runs, and forget it."""
        if self._process is not None:
            self._process.kill()
        self._process = None
        self._heard = time.monotonic()
        self._status = None
        self._unread = b""
