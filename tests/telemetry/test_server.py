"""The server gives metrics and health to whoever asks, and no client can hold the worker up."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from worker.errors import ConfigurationError
from worker.logs.logger import configure_logs
from worker.telemetry import server
from worker.telemetry.catalogue import CATALOGUE
from worker.telemetry.metrics import Metrics, Status
from worker.telemetry.server import serving

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Nothing here takes long, so a test that waits for so many seconds has failed.
PATIENCE = 30
HOSTS = ["localhost", "Metrics.example"]


@pytest.fixture
def statuses() -> list[Status]:
    metrics = Metrics("emotion", "0123456789abcdef", ["joy", "anger"])
    return [Status(0, live=True, ready=True, metrics=metrics.snapshot())]


@pytest.fixture
def address(statuses: list[Status]) -> Iterator[str]:
    with serving("127.0.0.1:0", HOSTS, lambda: statuses) as address:
        assert address is not None
        yield address


def ask(address: str, path: str, method: str = "GET", **headers: str) -> tuple[HTTPResponse, bytes]:
    with closing(HTTPConnection(address, timeout=PATIENCE)) as connection:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response, response.read()


def health(address: str, path: str) -> tuple[int, dict[str, Any]]:
    response, body = ask(address, path)
    assert response.headers["Content-Type"] == "application/json"
    content: dict[str, Any] = json.loads(body)
    return response.status, content


def connected(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def is_cut_off(connection: socket.socket) -> bool:
    """Wait until the server ends a connection to which it has said nothing."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


# Who may ask.


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:9464",
        "metrics.example:80",
        "127.0.0.1",
        "10.0.0.7:9464",
        "[::1]:9464",
    ],
)
@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz"])
def test_names_that_are_allowed_and_all_addresses_are_answered(
    address: str, host: str, path: str
) -> None:
    assert ask(address, path, Host=host)[0].status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example:9464", "", "2130706433", "[::1", "a b", "\x1b[2J"],
)
@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/else"])
def test_other_names_are_refused(address: str, host: str, path: str) -> None:
    response, body = ask(address, path, Host=host)
    assert response.status == 421
    assert b"run.allowed_hosts" in body
    assert b"worker_" not in body


def test_a_request_without_a_host_is_none_of_a_browser(address: str) -> None:
    with connected(address) as connection:
        connection.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.0 200")


def test_any_name_can_be_allowed(statuses: list[Status]) -> None:
    with serving("127.0.0.1:0", ["*"], lambda: statuses) as address:
        assert address is not None
        assert ask(address, "/metrics", Host="evil.example")[0].status == 200


def test_the_name_that_it_listens_on_is_allowed(statuses: list[Status]) -> None:
    with serving("localhost:0", [], lambda: statuses) as address:
        assert address is not None
        assert health(address, "/healthz")[0] == 200
        assert ask(address, "/metrics", Host="localhost")[0].status == 200
        assert ask(address, "/metrics", Host="other")[0].status == 421


def test_the_first_refusal_is_logged(address: str, capfd: pytest.CaptureFixture[str]) -> None:
    configure_logs("warning", "json")
    for host in ("evil.example", "other.example"):
        ask(address, "/metrics", Host=host)
    (line,) = capfd.readouterr().err.splitlines()
    assert json.loads(line)["host"] == "evil.example"


# Metrics.


def test_metrics_are_in_the_text_format_by_default(address: str) -> None:
    response, body = ask(address, "/metrics")
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    families = parser.text_string_to_metric_families(body.decode())
    samples = {sample.name: sample for family in families for sample in family.samples}
    assert samples["worker_live"].value == 1
    assert samples["worker_messages_total"].labels == {"process": "0"}
    for definition in CATALOGUE:
        assert f"# TYPE {definition.name} {definition.kind}\n" in body.decode()


def test_metrics_are_in_openmetrics_for_those_who_ask(address: str) -> None:
    response, body = ask(address, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert response.headers["Content-Type"].startswith("application/openmetrics-text")
    families = openmetrics_parser.text_string_to_metric_families(  # type: ignore[no-untyped-call]  # prometheus_client has no types here
        body.decode()
    )
    assert len(list(families)) == len(CATALOGUE)


def test_metrics_are_compressed_for_those_who_ask(address: str) -> None:
    response, body = ask(address, "/metrics", **{"Accept-Encoding": "gzip"})
    assert response.headers["Content-Encoding"] == "gzip"
    assert b"worker_messages_total" in gzip.decompress(body)


def test_metrics_can_be_asked_for_by_name(address: str) -> None:
    _, body = ask(address, "/metrics?name[]=worker_live")
    assert body.decode().splitlines()[-1] == 'worker_live{process="0"} 1.0'
    assert b"worker_messages" not in body


def test_metrics_are_those_of_now(address: str, statuses: list[Status]) -> None:
    statuses.append(Status(1, live=False, ready=False))
    _, body = ask(address, "/metrics")
    assert b'worker_live{process="1"} 0.0\n' in body


# Health.


def test_health_of_a_worker_that_is_well(address: str) -> None:
    processes = [{"process": 0, "live": True, "ready": True, "problem": None}]
    assert health(address, "/healthz") == (
        200,
        {"live": True, "reason": None, "processes": processes},
    )
    assert health(address, "/readyz?verbose") == (
        200,
        {"ready": True, "reason": None, "processes": processes},
    )


def test_a_process_that_waits_for_the_brokers_is_live_and_not_ready(
    address: str, statuses: list[Status]
) -> None:
    statuses.append(Status(1, live=True, ready=False, problem="the brokers do not answer"))
    assert health(address, "/healthz")[0] == 200
    status, content = health(address, "/readyz")
    assert status == 503
    assert content["ready"] is False
    assert content["reason"] == "process 1 is not ready: the brokers do not answer"
    assert content["processes"][1] == {
        "process": 1,
        "live": True,
        "ready": False,
        "problem": "the brokers do not answer",
    }


def test_one_process_that_is_not_live_is_enough_for_the_whole(
    address: str, statuses: list[Status]
) -> None:
    statuses += [
        Status(1, live=False, ready=False, problem="it has ended"),
        Status(2, live=False, ready=False),
    ]
    status, content = health(address, "/healthz")
    assert status == 503
    assert content["live"] is False
    assert content["reason"] == (
        "process 1 is not live: it has ended; process 2 is not live: no reason is known"
    )


def test_health_changes_as_the_worker_does(address: str, statuses: list[Status]) -> None:
    seen = []
    for live in (True, False, True):
        statuses[0] = Status(0, live=live, ready=live)
        seen.append(health(address, "/healthz")[0])
    assert seen == [200, 503, 200]


# Requests of all kinds.


@pytest.mark.parametrize("path", ["/", "/metrics/", "/healthz/../metrics", "/secret"])
def test_there_is_nothing_else(address: str, path: str) -> None:
    response, body = ask(address, path)
    assert response.status == 404
    assert b"/metrics, /healthz, /readyz" in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD"])
def test_nothing_can_be_changed(address: str, method: str) -> None:
    assert ask(address, "/metrics", method)[0].status == 501
    assert ask(address, "/metrics")[0].status == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"",
        b"\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /metrics\r\n",
        b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"GET /metrics HTTP/9.9\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nAccept: text/plain; version=x\r\n\r\n",
    ],
)
def test_whatever_is_sent_others_are_answered(
    address: str, capfd: pytest.CaptureFixture[str], request_bytes: bytes
) -> None:
    configure_logs("info", "json")
    with connected(address) as connection:
        connection.sendall(request_bytes)
        connection.shutdown(socket.SHUT_WR)
        try:
            while connection.recv(2**16):
                pass
        except ConnectionResetError:
            pass
    assert health(address, "/healthz")[0] == 200
    output = capfd.readouterr()
    assert output.out == ""
    for line in output.err.splitlines():
        assert json.loads(line)["event"] == "a request for metrics or health failed"


def test_requests_are_not_logged(address: str, capfd: pytest.CaptureFixture[str]) -> None:
    configure_logs("debug", "json")
    ask(address, "/metrics")
    ask(address, "/secret")
    ask(address, "/secret", "POST")
    assert capfd.readouterr() == ("", "")


def test_a_fault_of_ours_is_logged_without_its_words(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logs("warning", "json")

    def statuses() -> Sequence[Status]:
        raise ValueError("secret")

    with serving("127.0.0.1:0", HOSTS, statuses) as address:
        assert address is not None
        for path in ("/metrics", "/healthz"):
            with connected(address) as connection:
                connection.sendall(f"GET {path} HTTP/1.1\r\n\r\n".encode())
                assert is_cut_off(connection)
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["error"] for line in lines] == ["ValueError"] * 2
    assert "secret" not in json.dumps(lines)


# Clients that hold connections.


def test_clients_that_say_nothing_hold_nobody_up(address: str) -> None:
    with connected(address), connected(address) as half:
        half.sendall(b"GET /metrics HTTP/1.1\r\nAcc")
        assert health(address, "/healthz")[0] == 200
        assert ask(address, "/metrics")[0].status == 200


def test_of_too_many_connections_the_oldest_are_cut_off(address: str) -> None:
    connections = [connected(address) for _ in range(2 * server._CONNECTIONS)]
    try:
        for connection in connections[: server._CONNECTIONS]:
            assert is_cut_off(connection)
        assert health(address, "/healthz")[0] == 200
    finally:
        for connection in connections:
            connection.close()


def test_a_request_that_takes_long_is_cut_off(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connected(address) as silent, connected(address) as slow:
        slow.sendall(b"GET /metrics HTTP/1.1\r\nAcc")
        monkeypatch.setattr(server, "_REQUEST_SECONDS", 0)
        assert is_cut_off(silent)
        assert is_cut_off(slow)


def test_an_answer_that_nobody_reads_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    # This is more than the buffers of the system take.
    problem = "p" * 2**26
    asked, closed = threading.Event(), threading.Event()
    close = server._Server.shutdown_request

    def statuses() -> Sequence[Status]:
        asked.set()
        return [Status(0, live=False, ready=False, problem=problem)]

    def shutdown_request(self: server._Server, request: socket.socket) -> None:
        close(self, request)
        closed.set()

    monkeypatch.setattr(server._Server, "shutdown_request", shutdown_request)
    with serving("127.0.0.1:0", HOSTS, statuses) as address:
        assert address is not None
        with connected(address) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
            assert asked.wait(PATIENCE)
            monkeypatch.setattr(server, "_REQUEST_SECONDS", 0)
            assert closed.wait(PATIENCE)


def test_on_leaving_nothing_listens_and_nobody_is_waited_for(statuses: list[Status]) -> None:
    with serving("127.0.0.1:0", HOSTS, lambda: statuses) as address:
        assert address is not None
        silent = connected(address)
        assert health(address, "/healthz")[0] == 200
    with silent:
        assert is_cut_off(silent)
    with pytest.raises(ConnectionRefusedError):
        connected(address)
    assert "status" not in [thread.name for thread in threading.enumerate()]


# Addresses.


def test_off_listens_nowhere() -> None:
    def statuses() -> Sequence[Status]:
        raise AssertionError

    before = threading.active_count()
    with serving("off", HOSTS, statuses) as address:
        assert address is None
        assert threading.active_count() == before


def test_the_address_in_use_is_logged(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "json")
    with serving("127.0.0.1:0", HOSTS, list) as address:
        line = json.loads(capfd.readouterr().err)
    assert line["event"] == "listening"
    assert line["address"] == address != "127.0.0.1:0"


@pytest.mark.parametrize("listen", ["[::1]:0", "::1:0"])
def test_ipv6_can_be_listened_on(listen: str) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with serving(listen, HOSTS, list) as address:
        assert address is not None
        assert address.startswith("[::1]:")
        assert health(address, "/healthz")[0] == 200


def refusal(listen: str) -> str:
    with pytest.raises(ConfigurationError) as error, serving(listen, HOSTS, list):
        pass
    return str(error.value)


def test_an_address_that_is_taken_is_refused_with_advice() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        assert refusal(listen) == (
            f"cannot listen on {listen}: Address already in use; "
            "set run.listen to another host:port, or to off"
        )


@pytest.mark.parametrize(
    ("listen", "why"),
    [
        ("127.0.0.1:65536", "has a port above 65535"),
        ("192.0.2.1:0", "Cannot assign requested address"),
        ("a..b:0", "no such host"),
        ("a\0b:0", "cannot listen on a\0b:0: "),
        ("\ud800:0", "cannot listen on "),
    ],
)
def test_an_address_that_is_none_here_is_refused_with_advice(listen: str, why: str) -> None:
    message = refusal(listen)
    assert why in message
    assert message.endswith("; set run.listen to another host:port, or to off")


def test_a_host_that_is_not_known_is_refused_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert refusal("metrics.example:9464") == (
        "cannot listen on metrics.example:9464: Name or service not known; "
        "set run.listen to another host:port, or to off"
    )
