"""Drives compose.yaml on a Docker engine, as a project of its own beside any other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from tests.compose.files import ROOT
from tests.kafka.broker import Kafka, free_port, wait_until
from tests.kafka.stage import Stage
from worker.settings.schema import KafkaSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DRAIN_SECONDS = 600.0
PROJECT = "chat-label-worker-test"
DOCKER = shutil.which("docker") or "docker"


@dataclass
class Project:
    """What `docker compose` brings up, and the variables that it is brought up with."""

    variables: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kafka_port, self.prometheus_port = free_port(), free_port()
        self.variables |= {
            "KAFKA_PORT": str(self.kafka_port),
            "PROMETHEUS_PORT": str(self.prometheus_port),
        }

    def __enter__(self) -> Self:
        self.remove()
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove containers, networks and volumes."""
        every = ["--profile", "observe", "--profile", "dashboard"]
        self.compose(*every, "down", "--volumes", "--remove-orphans", "--timeout", "20")

    def compose(self, *arguments: str, text: str | None = None, check: bool = True) -> str:
        """Run a command of docker compose; returns what it prints, of both streams."""
        result = subprocess.run(
            [DOCKER, "compose", "--project-name", PROJECT, *arguments],
            cwd=ROOT,
            env=os.environ | self.variables,
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            check=False,
        )
        if check and result.returncode:
            raise RuntimeError(f"docker compose {' '.join(arguments)}: {result.stdout}")
        return result.stdout

    def up(self, *arguments: str, **variables: str) -> None:
        self.variables |= variables
        self.compose("up", "--detach", *arguments)

    def logs(self, service: str) -> list[str]:
        return self.compose("logs", "--no-log-prefix", service).splitlines()

    def containers(self, service: str) -> list[Container]:
        """Return the containers of a service, those that have ended, too."""
        numbers = self.compose("ps", "--all", "--quiet", service).split()
        return [Container(inspect(number)) for number in numbers]


@dataclass(frozen=True)
class Container:
    """A container as the engine describes it."""

    description: Mapping[str, Any]

    @property
    def health(self) -> str:
        health: str = self.description["State"]["Health"]["Status"]
        return health

    @property
    def running(self) -> bool:
        return bool(self.description["State"]["Running"])

    @property
    def exit_code(self) -> int:
        return int(self.description["State"]["ExitCode"])

    @property
    def restarts(self) -> int:
        return int(self.description["RestartCount"])


class ComposeStage(Stage):
    """The topics that compose.yaml has, for the verifier."""

    def __init__(self, project: Project) -> None:
        settings = KafkaSettings()
        self.kafka = Kafka(f"localhost:{project.kafka_port}")
        (self.input,) = settings.input_topics
        self.output, self.dead = settings.output_topic, settings.dead_letter_topic
        self.group = settings.group
        self.workers = []

    def wait_until_done(self) -> None:
        """Wait until everything that was produced is committed, and its transaction closed."""
        ends = self.kafka.ends(self.input, "read_committed")

        def done() -> bool:
            committed = self.kafka.committed(self.group, self.input)
            return all(committed.get(p.partition, 0) >= end for p, end in ends.items() if end)

        wait_until(done, "the end of the input", DRAIN_SECONDS)
        self.wait_until_closed()


def inspect(what: str) -> dict[str, Any]:
    result = subprocess.run([DOCKER, "inspect", what], stdout=subprocess.PIPE, check=True)
    (description,) = json.loads(result.stdout)
    assert isinstance(description, dict)
    return description


def image_bytes(names: Sequence[str]) -> list[int]:
    """Return the sizes of images."""
    return [int(inspect(name)["Size"]) for name in names]
