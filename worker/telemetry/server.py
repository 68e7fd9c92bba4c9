"""Metrics and health over HTTP, from a thread beside the work.

    /metrics    for Prometheus, as text or OpenMetrics
    /healthz    200 while every process is live, else 503: start the worker again
    /readyz     200 while every process is ready, else 503: a roll-out waits, chat does not

One address speaks for all processes, so one that fails fails the whole: it has partitions that
wait. Whatever a client does, the work goes on: each request has a thread of its own and ends within
seconds, and of too many the oldest is cut off.
"""

from __future__ import annotations

import json
import math
import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress
from http import HTTPStatus
from socketserver import ThreadingTCPServer
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from prometheus_client import CollectorRegistry, MetricsHandler

from worker.addresses import address_of, host_and_port
from worker.errors import ConfigurationError
from worker.logs.logger import log
from worker.telemetry.health import OFF
from worker.telemetry.metrics import families

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from prometheus_client.core import Metric

    from worker.telemetry.metrics import Status

    Statuses: TypeAlias = Callable[[], Sequence[Status]]

_CHECKS: Final[dict[str, Literal["live", "ready"]]] = {"/healthz": "live", "/readyz": "ready"}
_REQUEST_SECONDS: Final = 10.0
_CONNECTIONS: Final = 32
_INTERVAL: Final = 0.2
_HIGHEST_PORT: Final = 65535


@contextmanager
def serving(listen: str, statuses: Statuses) -> Iterator[str | None]:
    """Answer requests as long as the context lasts, at the address of `run.listen`, or "off".

    `statuses` is called by any thread, must not block, and has every process that should run.
    Yields the address in use, with the port that the system chose where port 0 was asked for; None
    where nothing listens.

    Raises:
        ConfigurationError: the address is taken, or cannot be used.

    """
    if listen == OFF:
        yield None
        return
    with _listen(listen, statuses) as server:
        thread = threading.Thread(
            target=server.serve_forever, args=(_INTERVAL,), name="status", daemon=True
        )
        thread.start()
        log.info("listening", address=server.address)
        try:
            yield server.address
        finally:
            server.shutdown()
            thread.join()
            server.cut_off(math.inf)


def _listen(listen: str, statuses: Statuses) -> _Server:
    host, port = host_and_port(listen)
    advice = "set run.listen to another host:port, or to off"
    if port > _HIGHEST_PORT:
        raise ConfigurationError(f"{listen} has a port above {_HIGHEST_PORT}", advice)
    try:
        family, *_, address = socket.getaddrinfo(
            host,
            port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )[0]
        return _Server(family, address, statuses)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "no such host"
        raise ConfigurationError(f"cannot listen on {listen}: {why}", advice) from None


class _Collector:
    """What Prometheus' library asks for metrics."""

    def __init__(self, statuses: Statuses) -> None:
        self._statuses = statuses

    def collect(self) -> Iterator[Metric]:
        return families(self._statuses())


# Not http.server's: that one looks up the name of its host, for which it may wait long.
class _Server(ThreadingTCPServer):
    """Listens from the start; a thread for each connection."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = _CONNECTIONS

    def __init__(self, family: int, address: Any, statuses: Statuses) -> None:  # noqa: ANN401 - by family
        self.address_family = family
        self.statuses = statuses
        self.registry = CollectorRegistry(support_collectors_without_names=True)
        self.registry.register(_Collector(statuses))
        self._lock = threading.Lock()
        self._begun: dict[socket.socket, float] = {}
        super().__init__(address, _Handler)

    @property
    def address(self) -> str:
        """Return host and port as in a URL."""
        host, port, *_ = self.server_address
        return address_of(str(host), port)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - the base's
        """Remember when a connection began, and give it a thread."""
        with self._lock:
            self._begun[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401 - the base's
        """Forget a connection, then close it: nothing else may be cut off in its place."""
        with self._lock:
            self._begun.pop(request, None)
        super().shutdown_request(request)

    def cut_off(self, begun_before: float) -> None:
        """End connections that began before a point of the monotonic clock, and surplus ones."""
        with self._lock:
            surplus = len(self._begun) - _CONNECTIONS
            for place, (connection, begun) in enumerate(self._begun.items()):
                if place < surplus or begun < begun_before:
                    with suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)

    def service_actions(self) -> None:
        """Cut off what is late; called after each connection, and several times a second."""
        self.cut_off(time.monotonic() - _REQUEST_SECONDS)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - the base's
        """Log what is a fault of ours; clients that go away are not."""
        error = sys.exception()
        if not isinstance(error, OSError):
            log.warning("a request for metrics or health failed", error=type(error).__name__)


class _Handler(MetricsHandler):
    """Answers one request."""

    server: _Server

    def do_GET(self) -> None:  # noqa: N802 - the base's
        """Answer with metrics or health."""
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self.registry = self.server.registry
            super().do_GET()
        elif path in _CHECKS:
            self._tell_health(_CHECKS[path])
        else:
            self.send_error(HTTPStatus.NOT_FOUND, explain="There are /metrics, /healthz, /readyz.")

    def _tell_health(self, aspect: Literal["live", "ready"]) -> None:
        statuses = self.server.statuses()
        failing = [status for status in statuses if not getattr(status, aspect)]
        reasons = [
            f"process {status.process} is not {aspect}: {status.problem or 'no reason is known'}"
            for status in failing
        ]
        content = {
            aspect: not failing,
            "reason": "; ".join(reasons) or None,
            "processes": [
                {name: getattr(status, name) for name in ("process", "live", "ready", "problem")}
                for status in statuses
            ],
        }
        body = json.dumps(content).encode() + b"\n"
        self.send_response(HTTPStatus.SERVICE_UNAVAILABLE if failing else HTTPStatus.OK)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
