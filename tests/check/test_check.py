"""`worker check` without brokers: what it says about those that are away, and about this machine."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from kafka.errors import LeaderNotAvailableError, UnsupportedSaslMechanismError
from pydantic import SecretStr

from tests.conftest import NATIVE
from worker import cli
from worker.check import brokers, machine
from worker.check.findings import Level
from worker.check.topics import Role, Topic, _absence, _rights
from worker.inference import cpu, native_engine
from worker.inference.native_engine import available_backends
from worker.settings.schema import KafkaSettings, SaslSettings, Settings, TlsSettings
from worker.transports.kafka.clients import risks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Check = Callable[..., tuple[int, list[str]]]

AWAY = {"KAFKA__BROKERS": "127.0.0.1:1"}
SECRET = "correct horse"  # noqa: S105 - no real password


@pytest.fixture
def run_check(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Check:
    """Return a function that runs the command with settings; it returns the exit code and the lines."""

    def run(**settings: str) -> tuple[int, list[str]]:
        for name, value in (AWAY | settings).items():
            monkeypatch.setenv(f"WORKER_{name}", value)
        code = cli.main(["check"])
        output = capfd.readouterr()
        assert SECRET not in output.out + output.err
        return code, output.out.splitlines()

    return run


def about(lines: list[str], what: str) -> list[str]:
    """Return level and sentence of the lines about a subject."""
    cut = [line.split(f"  {what}: ", 1) for line in lines]
    return [f"{parts[0].strip()} {parts[1]}" for parts in cut if len(parts) == 2]


@contextmanager
def listener(answer: Callable[[socket.socket], None] | None = None) -> Iterator[str]:
    """Listen as a program that is no broker; without an answer, connections are left waiting."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    assert answer
                    answer(connection)

        thread = threading.Thread(target=serve)
        if answer:
            thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    if answer:
        thread.join()


def hang_up(connection: socket.socket) -> None:
    connection.recv(1)


# Brokers that do not let us in.


def test_every_line_has_a_level_and_says_what_it_is_about(run_check: Check) -> None:
    code, lines = run_check()
    assert code == 1
    levels = [Level(line.split()[0]) for line in lines]
    assert levels == [Level.FAIL, Level.SKIP, *[Level.OK] * 4]
    subjects = ["brokers", "topics, rights", "model", "engine", "cache folder", "cpu"]
    assert [line[6:].split(":")[0] for line in lines] == subjects


def test_where_nothing_listens_the_reason_is_given(run_check: Check) -> None:
    _, lines = run_check()
    assert about(lines, "brokers") == ["fail 127.0.0.1:1 cannot be reached: Connection refused"]
    assert about(lines, "credentials") == []


def test_a_name_that_is_not_known_is_reported(run_check: Check) -> None:
    _, lines = run_check(KAFKA__BROKERS="broker.invalid:9092")
    assert about(lines, "brokers") == [
        "fail broker.invalid:9092 has a name that cannot be resolved here"
    ]


def test_an_address_that_can_be_none_is_reported(run_check: Check) -> None:
    _, lines = run_check(KAFKA__BROKERS="[::1:9092")
    assert about(lines, "brokers") == ["fail [::1:9092 is not of the form host:port"]


def test_every_broker_that_is_named_is_tried(run_check: Check) -> None:
    code, lines = run_check(KAFKA__BROKERS="127.0.0.1:1,127.0.0.1:2")
    assert [line.split()[1] for line in about(lines, "brokers")] == ["127.0.0.1:1", "127.0.0.1:2"]
    assert code == 1


@pytest.mark.parametrize("tls", ["true", "false"])
def test_a_silent_broker_is_given_up(run_check: Check, tls: str) -> None:
    with listener() as address:
        code, lines = run_check(
            KAFKA__BROKERS=address,
            KAFKA__TLS__ENABLED=tls,
            KAFKA__REQUEST_TIMEOUT_SECONDS="1",
        )
    assert about(lines, "brokers") == [f"fail {address} does not answer within 1 seconds"]
    assert code == 1


def test_tls_where_there_is_none_is_reported(run_check: Check) -> None:
    with listener(hang_up) as address:
        _, lines = run_check(KAFKA__BROKERS=address, KAFKA__TLS__ENABLED="true")
    (line,) = about(lines, "brokers")
    assert line == f"fail {address} ends the TLS handshake; see whether kafka.tls.enabled is right"


def test_one_that_hangs_up_may_ask_for_tls_or_a_login(run_check: Check) -> None:
    with listener(hang_up) as address:
        code, lines = run_check(KAFKA__BROKERS=address)
    (line,) = about(lines, "credentials")
    assert line.startswith("fail the brokers do not let us in: do they ask for TLS")
    assert code == 1


@pytest.mark.parametrize(
    ("number", "meaning"), [(62, "another name"), (10, "not valid now"), (20, "not trusted here")]
)
def test_what_is_wrong_with_a_certificate_is_reported(number: int, meaning: str) -> None:
    error = ssl.SSLCertVerificationError()
    error.verify_code = number
    assert meaning in brokers.connection_problem(error, 1)


def test_a_file_of_certificates_that_cannot_be_read_is_reported(
    run_check: Check, tmp_path: Path
) -> None:
    _, lines = run_check(KAFKA__TLS__ENABLED="true", KAFKA__TLS__CA=str(tmp_path / "no.pem"))
    (line,) = about(lines, "credentials")
    assert line.startswith("fail kafka.tls.ca: ")


LOGIN = SaslSettings(mechanism="plain", username="worker", password=SecretStr(SECRET))


@pytest.mark.parametrize(
    ("settings", "risk"),
    [
        (KafkaSettings(sasl=LOGIN), "the password is sent in clear"),
        (KafkaSettings(sasl=LOGIN, tls=TlsSettings(enabled=True)), ""),
        (KafkaSettings(), ""),
        (
            KafkaSettings(tls=TlsSettings(enabled=True, check_hostname=False)),
            "kafka.tls.check_hostname is off",
        ),
    ],
)
def test_what_others_on_the_network_could_do_is_told(settings: KafkaSettings, risk: str) -> None:
    found = list(risks(settings))
    assert len(found) == bool(risk)
    assert all(each.startswith(risk) for each in found)
    assert SECRET not in str(found)


def test_a_login_that_is_not_offered_is_reported() -> None:
    error = UnsupportedSaslMechanismError()
    assert brokers.refusal(error, {}).startswith("the brokers do not offer this login")


def test_brokers_too_old_to_report_rights_are_no_failure() -> None:
    topic = Topic(Role.INPUT, "chat", {"authorized_operations": None}, {})
    (finding,) = _rights(topic)
    assert str(finding) == "skip  topic chat: the brokers do not say what the worker may do"


def test_a_topic_that_the_brokers_cannot_describe_just_now_is_reported() -> None:
    description = {"error_code": LeaderNotAvailableError.errno, "partitions": []}
    problem = _absence(Topic(Role.INPUT, "chat", description, {}), [], Settings())
    assert problem == "the brokers cannot describe it (LeaderNotAvailableError); try again"


def test_a_password_is_never_printed(run_check: Check) -> None:
    run_check(
        KAFKA__SASL__MECHANISM="plain",
        KAFKA__SASL__USERNAME="worker",
        KAFKA__SASL__PASSWORD=SECRET,
    )


# The model.


def test_a_good_model_is_named(run_check: Check) -> None:
    _, lines = run_check()
    (line,) = about(lines, "model")
    assert line.startswith("ok emotion (")


def test_a_damaged_model_fails(run_check: Check, model_copy: Path) -> None:
    with (model_copy / "weights.bin").open("r+b") as file:
        file.write(b"\xff\xff\xff\xff")
    code, lines = run_check(MODEL=str(model_copy))
    (line,) = about(lines, "model")
    assert line.startswith(f"fail {model_copy / 'weights.bin'} is damaged or altered")
    assert code == 1


def test_a_threshold_for_no_label_fails(run_check: Check) -> None:
    _, lines = run_check(THRESHOLDS__NOSUCH="0.5")
    (line,) = about(lines, "model")
    assert line.startswith("fail thresholds are set for labels that the model emotion does not")


def test_settings_that_do_not_fit_each_other_are_wrong_usage(run_check: Check) -> None:
    assert run_check(INPUT__KEEP='["labels"]') == (2, [])


# The cache folder.


def test_a_cache_folder_is_created_and_can_be_written(run_check: Check, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "cache"
    _, lines = run_check(CACHE__DIRECTORY=str(folder))
    (line,) = about(lines, "cache folder")
    assert line == f"ok {folder} can be written, and only its owner can read it"
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_cache_that_is_off_is_not_looked_at(run_check: Check) -> None:
    _, lines = run_check(CACHE__ENABLED="false")
    assert about(lines, "cache folder") == ["skip it is off, so no scores are remembered on disk"]


def a_file(folder: Path) -> None:
    folder.write_bytes(b"")


def below_a_file(folder: Path) -> None:
    folder.parent.rmdir()
    folder.parent.write_bytes(b"")


def open_to_others(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (a_file, "is not a folder"),
        (below_a_file, "cannot be created (Not a directory)"),
        (open_to_others, "is open to other users"),
    ],
)
def test_a_cache_folder_that_cannot_be_used_is_a_warning(
    run_check: Check, tmp_path: Path, spoil: Callable[[Path], None], problem: str
) -> None:
    folder = tmp_path / "parent" / "cache"
    folder.parent.mkdir()
    spoil(folder)
    _, lines = run_check(CACHE__DIRECTORY=str(folder))
    (line,) = about(lines, "cache folder")
    assert line.startswith(f"warn {folder} {problem}")


def test_a_cache_folder_of_another_user_is_a_warning(
    run_check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    _, lines = run_check(CACHE__DIRECTORY=str(tmp_path))
    (line,) = about(lines, "cache folder")
    assert line.startswith(f"warn {tmp_path} belongs to another user")


# The engine.


@NATIVE
def test_the_engine_and_its_instructions_are_named(run_check: Check) -> None:
    backend = available_backends()[-1]
    _, lines = run_check(ENGINE__BACKEND=backend)
    assert about(lines, "engine") == [f"ok native, {backend}"]
    _, lines = run_check(ENGINE__KIND="onnxruntime")
    (line,) = about(lines, "engine")
    assert line.startswith("ok onnxruntime, u8 by ")


def test_why_the_native_engine_is_not_used_is_said(
    run_check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_engine, "cpu_flags", lambda: frozenset({"sse2"}))
    _, lines = run_check()
    (line,) = about(lines, "engine")
    assert line.startswith("warn onnxruntime, u8 by ")
    assert "; not the native one: " in line


@NATIVE
def test_a_backend_that_this_machine_cannot_run_is_reported(run_check: Check) -> None:
    code, lines = run_check(ENGINE__BACKEND="abacus")
    assert code == 1
    (line,) = about(lines, "model")
    assert line.startswith("fail this machine cannot run the backend abacus")


# The CPU.


def test_what_the_cpu_offers(run_check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset({"sse2", "avx2", "avx_vnni"}))
    _, lines = run_check()
    (line,) = about(lines, "cpu")
    assert line.endswith(" offers avx2, avx_vnni")


def test_the_flags_that_are_printed_are_those_of_this_cpu(run_check: Check) -> None:
    _, lines = run_check()
    (line,) = about(lines, "cpu")
    assert ("avx_vnni" in line) == ("avx_vnni" in cpu.cpu_flags())


def test_more_processes_than_cores_are_a_warning(
    run_check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    _, lines = run_check(RUN__PROCESSES="3")
    assert about(lines, "run.processes") == ["warn 3 processes would share 2 cores; set it to 2"]
    _, lines = run_check(RUN__PROCESSES="2")
    assert about(lines, "run.processes") == []
