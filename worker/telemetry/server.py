"""Serves metrics and health over HTTP, from a thread beside the work.

    /metrics    for Prometheus, as text or OpenMetrics
    /healthz    200 while every process is live, else 503: the worker should be started again
    /readyz     200 while every process is ready, else 503: a roll-out should wait

One address answers for all processes. If one process fails, the answer is 503, since its partitions
wait. Clients cannot disturb the work: each connection has a thread of its own and is cut off after
10 seconds, and of more than 32 connections the oldest are cut off. A request that names a host that
is not allowed gets a 421.
"""

from __future__ import annotations

import ipaddress
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
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, MetricsHandler

from worker.addresses import address_of, host_and_port
from worker.errors import ConfigurationError
from worker.logs.logger import log
from worker.telemetry.exposition import families
from worker.telemetry.health import OFF

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from typing import Any

    from prometheus_client.core import Metric

    from worker.telemetry.metrics import Status

    Statuses: TypeAlias = Callable[[], Sequence[Status]]

_CHECKS: Final[dict[str, Literal["live", "ready"]]] = {"/healthz": "live", "/readyz": "ready"}
_REQUEST_SECONDS: Final = 10.0
_CONNECTIONS: Final = 32
_INTERVAL: Final = 0.2
_HOST: Final = 255
_HIGHEST_PORT: Final = 65535


@contextmanager
def serving(
    listen: str, allowed_hosts: Collection[str], statuses: Statuses
) -> Iterator[str | None]:
    """Answer requests at `listen`, which is host:port or "off", as long as the context lasts.

    `allowed_hosts` are the names that requests may give in their Host header; "*" is any.
    `statuses` returns the status of every process that should run; it is called by any thread and
    must not block. Yields host:port, with the port that the system chose for port 0, or None where
    `listen` is "off".

    Raises:
        ConfigurationError: the address is taken, or cannot be used.

    """
    if listen == OFF:
        yield None
        return
    with _listen(listen, allowed_hosts, statuses) as server:
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


def _listen(listen: str, allowed_hosts: Collection[str], statuses: Statuses) -> _Server:
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
        return _Server(family, address, {host, *allowed_hosts}, statuses)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "no such host"
        raise ConfigurationError(f"cannot listen on {listen}: {why}", advice) from None


class _Collector:
    """Gives the library of Prometheus the metrics when it asks for them."""

    def __init__(self, statuses: Statuses) -> None:
        self._statuses = statuses

    def collect(self) -> Iterator[Metric]:
        return families(self._statuses())


# The server of http.server would look up the name of its host, which may take long.
class _Server(ThreadingTCPServer):
    """Listens as soon as it is created, and has a thread for each connection."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = _CONNECTIONS

    def __init__(
        self,
        family: int,
        address: Any,  # noqa: ANN401 - its type depends on the family
        allowed_hosts: Collection[str],
        statuses: Statuses,
    ) -> None:
        self.address_family = family
        self._allowed_hosts = {name.lower() for name in allowed_hosts}
        self._has_refused = False
        self.statuses = statuses
        self.registry = CollectorRegistry(support_collectors_without_names=True)
        self.registry.register(_Collector(statuses))
        self._lock = threading.Lock()
        self._begun: dict[socket.socket, float] = {}
        super().__init__(address, _Handler)

    @property
    def address(self) -> str:
        """Return host:port as it is written in a URL."""
        host, port, *_ = self.server_address
        return address_of(str(host), port)

    def allows(self, host: str | None) -> bool:
        """Return whether a request may have such a Host header; one that has none may.

        A page on the web can make a browser ask here only by a name of its own.
        """
        if host is None or "*" in self._allowed_hosts:
            return True
        try:
            name = (urlsplit(f"//{host}").hostname or "").removesuffix(".")
            if name in self._allowed_hosts:
                return True
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def tell_of_refusal(self, host: str | None) -> None:
        """Log, once, that a host is not allowed: it may be one that the operator knows."""
        if not self._has_refused:
            self._has_refused = True
            log.warning("a request was refused, see run.allowed_hosts", host=(host or "")[:_HOST])

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - the type is that of the base class
        """Remember when a connection began, and give it a thread."""
        with self._lock:
            self._begun[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401 - the type is that of the base class
        """Forget a connection before it is closed, since the system may then reuse its number."""
        with self._lock:
            self._begun.pop(request, None)
        super().shutdown_request(request)

    def cut_off(self, begun_before: float) -> None:
        """End the connections that began before a time of the monotonic clock, and surplus ones."""
        with self._lock:
            surplus = len(self._begun) - _CONNECTIONS
            for index, (connection, begun) in enumerate(self._begun.items()):
                if index < surplus or begun < begun_before:
                    with suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)

    def service_actions(self) -> None:
        """Cut off late connections; the base class calls this several times a second."""
        self.cut_off(time.monotonic() - _REQUEST_SECONDS)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - the base class names it
        """Log errors of ours; that a client goes away is none."""
        error = sys.exception()
        if not isinstance(error, OSError):
            log.warning("a request for metrics or health failed", error=type(error).__name__)


class _Handler(MetricsHandler):
    """Answers one request."""

    server: _Server
    # No version: it would tell which faults to try.
    server_version = "worker"
    sys_version = ""

    def do_GET(self) -> None:  # noqa: N802 - the base class calls it by this name
        """Answer with metrics or health."""
        path, host = self.path.partition("?")[0], self.headers["Host"]
        if not self.server.allows(host):
            self.server.tell_of_refusal(host)
            self.send_error(
                HTTPStatus.MISDIRECTED_REQUEST, explain="This host is not in run.allowed_hosts."
            )
        elif path == "/metrics":
            self.registry = self.server.registry
            super().do_GET()
        elif path in _CHECKS:
            self._send_health(_CHECKS[path])
        else:
            self.send_error(HTTPStatus.NOT_FOUND, explain="There are /metrics, /healthz, /readyz.")

    def _send_health(self, aspect: Literal["live", "ready"]) -> None:
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
