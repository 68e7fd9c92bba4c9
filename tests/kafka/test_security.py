"""Logins, certificates and rights: with them labels come out, without them it says so, no more."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.kafka.broker import wait_until
from tests.kafka.health import LISTEN, has_come_up, wait_until_not_ready, wait_until_ready
from tests.kafka.stage import Stage, place_of
from worker.cli.entry import main
from worker.settings.loading import setting_variables
from worker.settings.schema import PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kafka.broker import SecureCluster

GUARANTEES = pytest.mark.parametrize("guarantee", ["at-least-once", "exactly-once"])
TEXTS = [f"message {number}" for number in range(40)]
SECRET = "correct horse"  # noqa: S105 - a test's
NO_ANSWER = "the brokers do not answer: they are away, refuse our credentials, or lack a topic"


@pytest.fixture
def stage(
    secure_kafka: SecureCluster, topic_names: Iterator[str], tmp_path: Path
) -> Iterator[Stage]:
    """Return topics at brokers that ask for a login, which the user `worker` may use."""
    with Stage(secure_kafka, topic_names, tmp_path) as stage:
        stage.settings |= {
            "KAFKA__TLS__ENABLED": "true",
            "KAFKA__TLS__CA": str(secure_kafka.certificates.ca),
        }
        allow(secure_kafka, "worker", stage)
        yield stage
        secure_kafka.forget("worker")


def allow(kafka: SecureCluster, user: str, stage: Stage) -> None:
    """Allow what docs/reliability.md says that a worker needs, and nothing else."""
    kafka.allow(user, "TOPIC", stage.input, "READ")
    kafka.allow(user, "TOPIC", stage.output, "READ", "WRITE")
    kafka.allow(user, "TOPIC", stage.dead, "WRITE")
    kafka.allow(user, "GROUP", stage.group, "READ")
    kafka.allow(user, "TRANSACTIONAL_ID", stage.group, "WRITE", prefix=True)


def login(kafka: SecureCluster, mechanism: str = "scram-sha-512") -> dict[str, str]:
    return {
        "KAFKA__SASL__MECHANISM": mechanism,
        "KAFKA__SASL__USERNAME": "worker",
        "KAFKA__SASL__PASSWORD": kafka.passwords["worker"],
    }


def certificate(kafka: SecureCluster) -> dict[str, str]:
    return {
        "KAFKA__BROKERS": kafka.mutual_bootstrap,
        "KAFKA__TLS__CERTIFICATE": str(kafka.certificates.client),
        "KAFKA__TLS__KEY": str(kafka.certificates.encrypted_client_key),
        "KAFKA__TLS__KEY_PASSWORD": kafka.certificates.key_password,
    }


def from_files(settings: dict[str, str], folder: Path) -> dict[str, str]:
    """Put the secrets of settings into files, which end with a line feed as most do."""
    changed = dict(settings)
    for name in settings:
        if name.endswith("PASSWORD"):
            path = folder / name.lower()
            path.write_text(changed.pop(name) + "\n", encoding="utf-8")
            changed[f"{name}_FILE"] = str(path)
    assert changed != settings
    return changed


def places(stage: Stage) -> list[tuple[int, int]]:
    return sorted(map(place_of, stage.labels()))


# Ways to log in.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kept", "guarantee"), [("environment", "at-least-once"), ("files", "exactly-once")]
)
@pytest.mark.parametrize("how", ["scram-sha-512", "scram-sha-256", "plain", "certificate"])
def test_labels_come_out_with_every_login(
    stage: Stage, secure_kafka: SecureCluster, how: str, kept: str, guarantee: str
) -> None:
    more = certificate(secure_kafka) if how == "certificate" else login(secure_kafka, how)
    if kept == "files":
        more = from_files(more, stage.folder)
    stage.produce_values([b'{"text": "gg"}', b"{"])
    worker = stage.worker(KAFKA__GUARANTEE=guarantee, **more)
    stage.wait_until_done()
    assert worker.stop() == 0
    assert places(stage) == [(0, 0)]
    assert [place_of(letter) for letter in stage.dead_letters()] == [(1, 0)]


# What is wrong with a login.


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"KAFKA__TLS__CA": "no-such-file"}, "kafka.tls.ca: no-such-file is not a file of cert"),
        ({"KAFKA__TLS__CA": __file__}, f"kafka.tls.ca: {__file__} is not a file of certificates"),
        ({"KAFKA__TLS__KEY_PASSWORD": "wrong"}, "kafka.tls.key_password must fit"),
        ({"KAFKA__TLS__KEY_PASSWORD": ""}, "kafka.tls.key_password must fit"),
        ({"KAFKA__TLS__KEY": __file__}, "cannot be used; both must be PEM"),
        ({"KAFKA__TLS__CERTIFICATE": "no-such-file"}, "cannot be used; both must be PEM"),
        ({"KAFKA__SASL__PASSWORD_FILE": "no-such-file"}, "password_file: no-such-file cannot be r"),
    ],
)
def test_files_that_cannot_be_used_end_the_worker_with_a_sentence(
    stage: Stage, secure_kafka: SecureCluster, wrong: dict[str, str], sentence: str
) -> None:
    settings = certificate(secure_kafka) | login(secure_kafka)
    del settings["KAFKA__SASL__PASSWORD"]
    settings |= {"KAFKA__SASL__PASSWORD_FILE": str(secure_kafka.certificates.ca)}
    worker = stage.worker(**settings | wrong)
    assert worker.wait() == 2
    assert sentence in worker.output.splitlines()[-1]
    assert "Traceback" not in worker.output


@pytest.mark.parametrize(
    "wrong",
    [
        {"KAFKA__SASL__PASSWORD": "wrong"},
        {"KAFKA__SASL__USERNAME": "nobody"},
        {
            "KAFKA__SASL__MECHANISM": "none",
            "KAFKA__SASL__USERNAME": "",
            "KAFKA__SASL__PASSWORD": "",
        },
        {"KAFKA__TLS__CA": ""},
        {"KAFKA__TLS__ENABLED": "false", "KAFKA__TLS__CA": ""},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_login_that_is_refused_is_waited_out_with_a_sentence_that_names_it(
    stage: Stage, secure_kafka: SecureCluster, wrong: dict[str, str]
) -> None:
    worker = stage.worker(**login(secure_kafka) | LISTEN | wrong)
    wait_until_not_ready(worker, NO_ANSWER)
    assert secure_kafka.passwords["worker"] not in worker.output
    assert worker.stop() == 0


# Secrets.


KAFKA_SETTINGS = [name for name in setting_variables() if name.startswith(f"{PREFIX}KAFKA")]


@pytest.mark.slow
def test_no_secret_is_reported_whatever_setting_is_wrong(
    stage: Stage, secure_kafka: SecureCluster
) -> None:
    secrets = {
        "KAFKA__SASL__PASSWORD": secure_kafka.passwords["worker"],
        "KAFKA__TLS__KEY_PASSWORD": secure_kafka.certificates.key_password,
    }
    files = from_files(secrets, stage.folder)
    stage.settings |= certificate(secure_kafka) | login(secure_kafka) | secrets | files | LISTEN
    stage.settings |= {"KAFKA__BROKERS": secure_kafka.bootstrap, "LOG__LEVEL": "debug"}
    secure_kafka.allow("worker", "GROUP", stage.group, "READ", prefix=True)
    for number, variable in enumerate(KAFKA_SETTINGS):
        wrong = {"KAFKA__GROUP": f"{stage.group}-{number}", variable.removeprefix(PREFIX): "wrong"}
        stage.worker(**wrong)
    for worker in stage.workers:
        wait_until(partial(has_come_up, worker), "a word of a worker")
        if worker.running:
            worker.stop()
        assert worker.process.returncode in {0, 2}, worker.output
        assert not [secret for secret in secrets.values() if secret in worker.output]
        assert "Traceback" not in worker.output


@pytest.mark.parametrize(
    "environment",
    [
        {"KAFKA": '{"sasl": {"password": "%s"'},
        {"KAFKA": '{"sasl": {"password": "%s", "nope": 1}}'},
        {"KAFKA": '{"sasl": {"mechanism": "plain", "password": "%s"}}'},
        {"KAFKA": '{"sasl": {"password": ["%s"]}}'},
        {"KAFKA": '{"sasl": "%s"}'},
        {"KAFKA__SASL": '{"password": {"%s": 1}}'},
        {"KAFKA__SASL": "%s"},
        {"KAFKA__SASL__PASSWORD": "%s", "KAFKA__SASL__MECHANISM": "plain"},
        {"KAFKA__SASL__PASSWORD": "%s", "KAFKA__SASL__NOPE": "1"},
        {"KAFKA__TLS__KEY_PASSWORD": "%s", "KAFKA__TLS__KEY": "key"},
    ],
    ids=str,
)
@pytest.mark.parametrize("command", ["run", "check"])
def test_no_secret_is_reported_where_it_stands_in_the_wrong_place(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    command: str,
    environment: dict[str, str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(PREFIX + name, value.replace("%s", SECRET))
    assert main([command]) == 2
    output = capfd.readouterr()
    assert SECRET not in output.out + output.err
    assert output.err.startswith("worker: ")


@pytest.mark.parametrize(
    "line",
    [
        "password = '{}",
        "password = {}",
        "password = ['{}']",
        "password = '{}'\nnope = 1",
    ],
)
def test_no_secret_of_a_file_of_settings_is_reported(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], line: str
) -> None:
    config = tmp_path / "worker.toml"
    config.write_text(f"[kafka.sasl]\n{line.format(SECRET)}\n", encoding="utf-8")
    assert main(["run", "--config", str(config)]) == 2
    output = capfd.readouterr()
    assert SECRET not in output.out + output.err


@pytest.mark.parametrize("command", [[], ["run"], ["check"], ["dead-letters", "skip"]])
def test_no_secret_is_reported_by_help(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], command: list[str]
) -> None:
    monkeypatch.setenv(f"{PREFIX}KAFKA__SASL__PASSWORD", SECRET)
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    output = capfd.readouterr()
    assert "usage: worker" in output.out
    assert SECRET not in output.out + output.err


# Rights that are taken away.


def deny_what(stage: Stage, what: str) -> tuple[str, str, str]:
    """Return what to deny: kind and name of a resource, and the operation."""
    return {
        "input": ("TOPIC", stage.input, "READ"),
        "output": ("TOPIC", stage.output, "WRITE"),
        "group": ("GROUP", stage.group, "READ"),
        "transactional id": ("TRANSACTIONAL_ID", stage.group, "WRITE"),
    }[what]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "guarantee", "sentence"),
    [
        ("input", "at-least-once", "a topic may not be used"),
        ("input", "exactly-once", "a topic may not be used"),
        ("output", "at-least-once", "a topic may not be used"),
        ("output", "exactly-once", "a topic may not be used"),
        ("group", "at-least-once", "the consumer group may not be used"),
        ("group", "exactly-once", "the consumer group may not be used"),
        ("transactional id", "exactly-once", "the transactional id may not be used"),
    ],
)
def test_a_right_that_is_lost_is_waited_for_and_costs_no_label(
    stage: Stage, secure_kafka: SecureCluster, what: str, guarantee: str, sentence: str
) -> None:
    stage.produce(TEXTS)
    worker = stage.worker(KAFKA__GUARANTEE=guarantee, **login(secure_kafka), **LISTEN)
    stage.wait_until_done()
    wait_until_ready(worker)
    kind, name, operation = deny_what(stage, what)
    secure_kafka.deny("worker", kind, name, operation, prefix=kind == "TRANSACTIONAL_ID")
    stage.produce(TEXTS)
    wait_until_not_ready(worker, sentence)
    assert stage.kafka.committed(stage.group, stage.input) == {0: 20, 1: 20}
    secure_kafka.forget("worker")
    allow(secure_kafka, "worker", stage)
    stage.wait_until_done()
    wait_until_ready(worker)
    assert worker.stop() == 0
    expected = [(partition, offset) for partition in (0, 1) for offset in range(len(TEXTS))]
    if guarantee == "exactly-once":
        assert places(stage) == expected
    else:
        # The broker answers a fetch that it allowed before the right was lost: these labels may be
        # out when the commit of their positions is refused, and then come again.
        assert sorted(set(places(stage))) == expected


def test_without_any_right_it_waits_and_says_so(stage: Stage, secure_kafka: SecureCluster) -> None:
    secure_kafka.forget("worker")
    stage.produce(TEXTS)
    worker = stage.worker(**login(secure_kafka), **LISTEN)
    wait_until_not_ready(worker, "the consumer group may not be used")
    allow(secure_kafka, "worker", stage)
    stage.wait_until_done()
    wait_until_ready(worker)
    assert len(places(stage)) == len(TEXTS)


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["input", "output", "dead letters"])
def test_without_the_right_to_a_topic_it_waits_and_says_so(
    stage: Stage, secure_kafka: SecureCluster, missing: str
) -> None:
    secure_kafka.forget("worker")
    secure_kafka.allow("worker", "GROUP", stage.group, "READ")
    if missing != "input":
        secure_kafka.allow("worker", "TOPIC", stage.input, "READ")
    if missing != "output":
        secure_kafka.allow("worker", "TOPIC", stage.output, "READ", "WRITE")
    if missing != "dead letters":
        secure_kafka.allow("worker", "TOPIC", stage.dead, "WRITE")
    stage.produce_values([b'{"text": "gg"}', b"{"])
    worker = stage.worker(**login(secure_kafka), **LISTEN)
    wait_until_not_ready(worker, "a topic may not be used")
    allow(secure_kafka, "worker", stage)
    stage.wait_until_done()
    wait_until_ready(worker)
    assert len(stage.labels()) == len(stage.dead_letters()) == 1
