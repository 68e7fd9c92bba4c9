"""The parent of `worker replay --processes N`: how it hears that a child has died."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from worker.errors import ConfigurationError, WorkerError
from worker.replay.children import Children
from worker.transports.files.writing import ReplayPosition

# Stands in for `worker replay`: the first child sends a chunk and never ends by itself, the second
# ends at once.
PROGRAM = """
import json, os, signal, socket, sys
number, descriptor = sys.argv[-1].split(":")
if number == "1":
    {end}
chunk = {{"position": {{}}, "labels": 3, "letters": 0, "bytes_read": 0, "texts": 1, "computed": 1}}
if {sends}:
    socket.socket(fileno=int(descriptor)).sendall(json.dumps(chunk).encode() + b"\\n{{}}\\n")
signal.pause()
"""
ENDS = [
    ("os.kill(os.getpid(), signal.SIGKILL)", WorkerError, "exit code -9"),
    ("sys.exit(1)", WorkerError, "exit code 1"),
    ("sys.exit(2)", ConfigurationError, "exit code 2"),
]


@pytest.fixture
def waited_for(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the processes whose end was waited for."""
    pids: list[int] = []
    wait = subprocess.Popen.wait

    def recorded(self: subprocess.Popen[Any], timeout: float | None = None) -> int:
        pids.append(self.pid)
        return wait(self, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", recorded)
    return pids


def start(monkeypatch: pytest.MonkeyPatch, end: str, *, sends: bool) -> Children:
    """Start both children, and return when the second one has ended."""
    program = PROGRAM.format(end=end, sends=sends)
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-c", program])
    children = Children(2, [], ReplayPosition())
    os.waitid(os.P_PID, children._children[1]._process.pid, os.WEXITED | os.WNOWAIT)
    return children


def test_a_child_that_the_system_does_not_start_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(subprocess, "Popen", refuse)
    problem = "process 0 cannot be started: Resource temporarily unavailable"
    with pytest.raises(WorkerError, match=problem):
        Children(2, [], ReplayPosition())


@pytest.mark.parametrize(("end", "kind", "how"), ENDS)
def test_a_dead_child_is_reported_though_the_next_chunk_is_anothers(
    monkeypatch: pytest.MonkeyPatch, end: str, kind: type[WorkerError], how: str
) -> None:
    with (
        start(monkeypatch, end, sends=False) as children,
        pytest.raises(WorkerError, match=rf"process 1 has failed \({how}\)") as error,
    ):
        next(children.chunks())
    assert type(error.value) is kind


@pytest.mark.parametrize(("end", "kind", "how"), ENDS)
def test_a_dead_child_is_reported_without_waiting_for_one_that_is_well(
    monkeypatch: pytest.MonkeyPatch,
    waited_for: list[int],
    end: str,
    kind: type[WorkerError],
    how: str,
) -> None:
    with start(monkeypatch, end, sends=True) as children:
        well = children._children[0]._process
        with pytest.raises(WorkerError, match=rf"process 1 has failed \({how}\)") as error:
            list(children.chunks())
        assert type(error.value) is kind
        assert well.pid not in waited_for
        assert well.poll() is None
    assert well.poll() == -signal.SIGKILL
