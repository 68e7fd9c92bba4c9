"""The link of a process to the parent that started it: what it tells, and that it follows it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest

from worker.run import link
from worker.run.link import Link
from worker.telemetry.metrics import Metrics, Status

if TYPE_CHECKING:
    from collections.abc import Iterator

# Nothing here takes long: a test that waits this long has failed.
PATIENCE = 60


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


# What it tells.


def test_a_link_is_made_of_the_number_and_the_descriptor_that_a_child_is_given(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    parent, child = ends
    made = Link.parse(f"7:{child.detach()}")
    assert made.process == 7
    with closing(made._socket):
        made._socket.sendall(b"!")
        assert parent.recv(1) == b"!"


def test_it_tells_the_status_at_once_and_again(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "_INTERVAL", 0.01)
    parent, child = ends
    metrics = Metrics("emotion", "0123456789abcdef", ["joy"])
    snapshots = [metrics.snapshot(), metrics.snapshot()]
    told = [Status(0, live=True, ready=n > 0, metrics=snapshots[n]) for n in (0, 1)]
    statuses = iter([told[0], *[told[1]] * 10**6])
    with Link(0, child).telling(lambda: next(statuses)):
        received = lines(parent)
        assert next(received) == asdict(told[0])
        assert next(received) == asdict(told[1])
        assert Status(**next(received)) == told[1]


def test_afterwards_it_tells_nothing(ends: tuple[socket.socket, socket.socket]) -> None:
    parent, child = ends
    with Link(0, child).telling(lambda: Status(0, live=True, ready=True)):
        assert next(lines(parent)) == asdict(Status(0, live=True, ready=True))
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "link")
    thread.join(PATIENCE)
    assert not thread.is_alive()


# What it follows.

CHILD = """
import sys, threading, time
from worker.run.link import Link
from worker.terminal.signals import StopSignal
from worker.telemetry.metrics import Status

def status():
    return Status(0, live=True, ready=stop.received is None)

with StopSignal() as stop, Link.parse(sys.argv[1]).telling(status):
    while stop.received is None or "lifeline" in [t.name for t in threading.enumerate()]:
        time.sleep(0.01)
print(stop.received)
"""


@pytest.fixture
def child(
    ends: tuple[socket.socket, socket.socket],
) -> Iterator[tuple[subprocess.Popen[str], socket.socket]]:
    """Return a process that stops when asked to, and its parent's end."""
    parent, theirs = ends
    descriptor = theirs.fileno()
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, f"0:{descriptor}"],
        pass_fds=[descriptor],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        theirs.close()
        assert next(lines(parent))["ready"]
        yield process, parent
        process.kill()


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
