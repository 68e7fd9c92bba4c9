"""A child's connection to its parent: what the child reports, and that it stops with its parent."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest

from worker.run import parent as parent_module
from worker.run.parent import ParentConnection
from worker.telemetry.metrics import Metrics, Status

if TYPE_CHECKING:
    from collections.abc import Iterator

# Nothing here takes long: a test that waits this long has failed.
PATIENCE = 60


def do_nothing() -> None:
    """Stand in for stopping."""


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return the parent's end and the child's."""
    parent, child = socket.socketpair()
    parent.settimeout(PATIENCE)
    with parent, child:
        yield parent, child


def lines(end: socket.socket) -> Iterator[dict[str, Any]]:
    with end.makefile("rb") as file:
        for line in file:
            yield json.loads(line)


# What it reports.


def test_it_is_opened_by_the_number_and_the_descriptor_that_a_child_is_given(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    parent, child = ends
    connection = ParentConnection.open(f"7:{child.detach()}")
    assert connection.child_number == 7
    with closing(connection._socket):
        connection._socket.sendall(b"!")
        assert parent.recv(1) == b"!"


def test_it_reports_the_status_at_once_and_again(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parent_module, "_INTERVAL", 0.01)
    parent, child = ends
    metrics = Metrics("emotion", "0123456789abcdef", ["joy"])
    snapshots = [metrics.snapshot(), metrics.snapshot()]
    reported = [Status(0, live=True, ready=n > 0, metrics=snapshots[n]) for n in (0, 1)]
    statuses = iter([reported[0], *[reported[1]] * 10**6])
    with ParentConnection(0, child).reporting(lambda: next(statuses), do_nothing):
        received = lines(parent)
        assert next(received) == asdict(reported[0])
        assert next(received) == asdict(reported[1])
        assert Status(**next(received)) == reported[1]


def test_afterwards_it_reports_nothing(ends: tuple[socket.socket, socket.socket]) -> None:
    parent, child = ends
    status = Status(0, live=True, ready=True)
    with ParentConnection(0, child).reporting(lambda: status, do_nothing):
        assert next(lines(parent)) == asdict(status)
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "report")
    thread.join(PATIENCE)
    assert not thread.is_alive()


# What it follows.

CHILD = """
import os, signal, sys, threading, time
from worker.run.parent import ParentConnection
from worker.terminal.signals import StopSignal
from worker.telemetry.metrics import Status

def status():
    return Status(0, live=True, ready=stop.received is None)

with StopSignal() as stop, ParentConnection.open(sys.argv[1]).reporting(status, stop.request):
    while stop.received is None or "lifeline" in [t.name for t in threading.enumerate()]:
        time.sleep(0.01)
print(stop.received)
"""


@contextmanager
def started(code: str, end: socket.socket) -> Iterator[subprocess.Popen[str]]:
    """Start a child with its end of the sockets."""
    descriptor = end.fileno()
    with subprocess.Popen(
        [sys.executable, "-c", code, f"0:{descriptor}"],
        pass_fds=[descriptor],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        end.close()
        yield process
        process.kill()


@pytest.fixture
def child(
    ends: tuple[socket.socket, socket.socket],
) -> Iterator[tuple[subprocess.Popen[str], socket.socket]]:
    """Return a process that stops when asked to, and its parent's end."""
    parent, theirs = ends
    with started(CHILD, theirs) as process:
        assert next(lines(parent))["ready"]
        yield process, parent


def end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return how a process ends, and what it says at last."""
    output, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, output


def test_a_process_stops_as_if_asked_to_when_its_parent_is_gone(
    child: tuple[subprocess.Popen[str], socket.socket],
) -> None:
    process, parent = child
    parent.close()
    assert end_of(process) == (0, f"{signal.SIGTERM:d}\n")


def test_a_parent_can_ask_it_to_stop_and_still_hear_of_it(
    child: tuple[subprocess.Popen[str], socket.socket],
) -> None:
    process, parent = child
    parent.shutdown(socket.SHUT_WR)
    assert all(line["live"] for line in lines(parent))
    assert end_of(process) == (0, f"{signal.SIGTERM:d}\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_was_asked_to_stop_is_not_asked_again(
    child: tuple[subprocess.Popen[str], socket.socket], number: signal.Signals
) -> None:
    process, parent = child
    process.send_signal(number)
    assert any(not line["ready"] for line in lines(parent))
    parent.close()
    assert end_of(process) == (0, f"{number:d}\n")


# Stands in for the one moment at which a signal could come that nobody could expect then: a process
# that is about to note that its parent is gone gets a signal first.
MEETS_A_SIGNAL = """
remember = StopSignal._remember
def remember_after_a_signal(self, number):
    StopSignal._remember = remember
    os.kill(os.getpid(), number)
    while self.received is None:
        time.sleep(0.01)
    self._remember(number)
StopSignal._remember = remember_after_a_signal
"""


def test_a_signal_that_comes_while_its_parent_goes_does_not_end_it_at_once(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    parent, theirs = ends
    code = CHILD.replace("\ndef status", f"{MEETS_A_SIGNAL}\ndef status")
    with started(code, theirs) as process:
        assert next(lines(parent))["ready"]
        parent.close()
        assert end_of(process) == (0, f"{signal.SIGTERM:d}\n")
