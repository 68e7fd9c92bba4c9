"""What can be checked of compose.yaml and Dockerfile without an engine."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.compose.files import (
    COMPOSE,
    DOCKERFILE,
    OURS,
    ROOT,
    SERVICES,
    VARIABLE,
    image_environment,
    instruction,
    with_defaults,
)
from worker.cli import entry
from worker.settings.loading import load_settings, setting_variables

if TYPE_CHECKING:
    from worker.settings.schema import Settings

# What a parent of several processes waits for its children beyond run.stop_seconds.
STOPPING_SECONDS = 3
RAW = (ROOT / "compose.yaml").read_text(encoding="utf-8")
DOCUMENTED = (ROOT / "docs" / "compose.md").read_text(encoding="utf-8")


def command_of(service: str) -> list[str]:
    default = " ".join(instruction("CMD"))
    return shlex.split(with_defaults(SERVICES[service].get("command", default)))


def environment_of(service: str) -> dict[str, str]:
    """Return the settings of a service where its user sets none."""
    own = SERVICES[service]["environment"]
    values = {name: with_defaults(value) for name, value in own.items() if value is not None}
    return image_environment() | values


def settings_of(service: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in environment_of(service).items():
        monkeypatch.setenv(name, value)
    return load_settings(None, {})


def test_it_is_what_the_schema_of_compose_files_asks_for() -> None:
    command = ["-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    result = subprocess.run(
        [sys.executable, *command, str(ROOT / "compose.yaml")], capture_output=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("service", OURS)
def test_settings_exist_and_repeat_no_default(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = load_settings(None, {}).model_dump()
    assert set(SERVICES[service]["environment"]) <= set(setting_variables())
    for name in environment_of(service):
        assert name in set(setting_variables())
    settings = settings_of(service, monkeypatch).model_dump()
    for name in environment_of(service):
        value, default = settings, defaults
        for part in name.removeprefix("WORKER_").lower().split("__"):
            value, default = value[part], default[part]
        assert value != default, name


@pytest.mark.parametrize("service", OURS)
def test_commands_are_such_as_the_worker_has(service: str) -> None:
    assert instruction("ENTRYPOINT") == ["worker"]
    assert entry.parser().parse_args(command_of(service)).command


def test_the_health_check_is_a_command_of_the_worker() -> None:
    program, *arguments = re.findall(r'"(\S+)"', re.findall(r"HEALTHCHECK.*", DOCKERFILE)[0])
    assert program == instruction("ENTRYPOINT")[0]
    assert entry.parser().parse_args(arguments).command
    assert "healthcheck" not in SERVICES["worker"]


@pytest.mark.parametrize("service", SERVICES)
def test_containers_have_no_rights(service: str) -> None:
    # Kafka writes its configuration beside its programs.
    assert SERVICES[service]["read_only"] is (service != "kafka")
    assert SERVICES[service]["cap_drop"] == ["ALL"]
    assert SERVICES[service]["security_opt"] == ["no-new-privileges:true"]


def test_the_user_of_the_image_is_a_number_other_than_root() -> None:
    (user,) = re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)
    assert int(user) > 0
    assert f"--uid {user} " in DOCKERFILE


def test_no_file_gets_into_the_image_that_is_not_pinned_by_its_digest() -> None:
    installs = re.findall(r"/pip .*install ((?:[^&]|\\\n)*)", DOCKERFILE)
    assert installs
    for arguments in installs:
        assert "--require-hashes" in arguments or "--no-deps" in arguments
    assert "--no-build-isolation" in DOCKERFILE


@pytest.mark.parametrize("service", OURS)
def test_signals_arrive_also_during_a_start(service: str) -> None:
    assert SERVICES[service]["init"] is True


def test_ports_are_bound_to_loopback() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_workers_can_be_scaled() -> None:
    worker = SERVICES["worker"]
    assert worker["deploy"]["replicas"] == 2
    assert not {"container_name", "ports", "hostname"} & worker.keys()


def test_a_worker_is_given_the_time_that_it_takes_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of("worker", monkeypatch)
    grace = with_defaults(SERVICES["worker"]["stop_grace_period"])
    assert float(grace.removesuffix("s")) > settings.run.stop_seconds + STOPPING_SECONDS


def test_workers_share_a_cache_on_a_volume_that_the_image_prepares() -> None:
    folder = image_environment()["WORKER_CACHE__DIRECTORY"]
    assert SERVICES["worker"]["volumes"] == [f"cache:{folder}"]
    assert f"install -d -m 700 -o worker {folder}" in DOCKERFILE


def test_prometheus_asks_workers_where_they_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    config = yaml.safe_load((ROOT / "configs" / "prometheus" / "prometheus.yml").read_bytes())
    (job,) = config["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    _, _, port = settings_of("worker", monkeypatch).run.listen.rpartition(":")
    assert found["names"] == ["worker"]
    assert found["port"] == int(port)
    source = yaml.safe_load((ROOT / "configs" / "grafana" / "datasources.yml").read_bytes())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    assert SERVICES["prometheus"]["ports"][0].endswith(":9090")


def test_what_is_mounted_is_there() -> None:
    mounts = [
        mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])
    ]
    assert {m for m in mounts if not m.startswith("./")} == COMPOSE["volumes"].keys()
    assert [m for m in mounts if m.startswith("./") and not (ROOT / m).exists()] == []


def test_what_the_image_copies_is_let_through() -> None:
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for line in re.findall(r"^COPY ([^-].*) \S+$", DOCKERFILE, re.MULTILINE):
        for name in line.split():
            assert f"!{name}" in allowed
            assert (ROOT / name).exists()


def test_every_variable_and_profile_is_documented() -> None:
    variables = set(VARIABLE.findall(RAW))
    assert {name for name, _ in variables if f"`{name}`" not in DOCUMENTED} == set()
    for name, default in variables:
        if not name.startswith("WORKER_"):
            assert re.search(rf"^\| `{name}` \| {re.escape(default)} \|", DOCUMENTED, re.MULTILINE)
    profiles = {p for service in SERVICES.values() for p in service.get("profiles", [])}
    assert {p for p in profiles if f"--profile {p}" not in DOCUMENTED} == set()


def test_images_have_versions() -> None:
    (base,) = re.findall(r"^ARG BASE=(\S+)", DOCKERFILE, re.MULTILINE)
    assert base == with_defaults(SERVICES["worker"]["build"]["args"]["BASE"])
    images = [s["image"] for s in SERVICES.values() if s not in OURS.values()]
    for image in [base, *map(with_defaults, images)]:
        assert re.search(r":v?\d+\.\d+", image), image
