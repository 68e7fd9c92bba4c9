"""What a worker tells about itself over HTTP."""

from __future__ import annotations

import json
from contextlib import closing
from http.client import HTTPConnection
from typing import TYPE_CHECKING

from tests.kafka.broker import PATIENCE, wait_until

if TYPE_CHECKING:
    from tests.kafka.stage import WorkerProcess

# For a worker that is to be asked.
LISTEN = {"RUN__LISTEN": "127.0.0.1:0"}


def wait_until_ready(worker: WorkerProcess) -> None:
    wait_until(lambda: _answer(worker, "/readyz") == (True, None), "a worker that is ready")


def wait_until_not_ready(worker: WorkerProcess, problem: str) -> None:
    """Wait until a worker is alive and not ready, for a reason that it names."""
    wait_until(lambda: _answer(worker, "/readyz") == (False, problem), problem)
    assert _answer(worker, "/healthz")[0]


def has_come_up(worker: WorkerProcess) -> bool:
    """Return whether a worker is ready, says why it is not, or has ended."""
    if not worker.running:
        return True
    if not any(entry["event"] == "listening" for entry in worker.events()):
        return False
    try:
        return _answer(worker, "/readyz") != (False, "not connected yet")
    except OSError:
        return not worker.running


def metrics(worker: WorkerProcess) -> list[str]:
    return _get(worker, "/metrics").decode().splitlines()


def _answer(worker: WorkerProcess, path: str) -> tuple[bool, str | None]:
    (process,) = json.loads(_get(worker, path))["processes"]
    return process["ready" if path == "/readyz" else "live"], process["problem"]


def _get(worker: WorkerProcess, path: str) -> bytes:
    worker.wait_for("listening")
    (address,) = (entry["address"] for entry in worker.events() if entry["event"] == "listening")
    with closing(HTTPConnection(address, timeout=PATIENCE)) as connection:
        connection.request("GET", path)
        return connection.getresponse().read()
