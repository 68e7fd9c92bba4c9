"""`make compose-test`: everything that compose.yaml promises, on a Docker engine.

    python -m tests.compose.live

Builds, brings everything up in a project of its own, looks, scales, stops, kills and restarts
under load with each guarantee, verifies every record as the chaos tests do, and takes everything
down. It prints what it measures, and ends with an error at the first thing that does not hold.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import time
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kafka import KafkaProducer

from tests.compose.engine import ComposeStage, Project, image_bytes
from tests.compose.files import IMAGE, OURS, ROOT, SERVICES, with_defaults
from tests.kafka.broker import PATIENCE, wait_until
from tests.kafka.verifier import verify
from worker.demo.chat import EXAMPLES
from worker.inference.classifier import Classifier

if TYPE_CHECKING:
    from collections.abc import Iterator

GUARANTEES = ("at-least-once", "exactly-once")
MOST_MEGABYTES = 350
MEGABYTE = 1_000_000
SCALE = 4
# More than the workers can do here, so that they are never idle.
RATE = 3000
LOAD_SECONDS = 8.0
# How often a worker may be started in vain in its first half minute, by Docker's own growing pauses.
LOOKING_SECONDS = 30.0
MOST_RESTARTS = 9


def main() -> int:
    if shutil.which("docker") is None:
        print("there is no docker here", file=sys.stderr)
        return 1
    with Project() as project:
        build(project)
        first_label(project)
        rights(project)
        from_the_host(project)
        replay(project)
        observed(project)
        cannot_start(project)
    for guarantee in GUARANTEES:
        # The verifier compares with labels that have no text.
        settings = {"WORKER_INCLUDE_TEXT": "false", "WORKER_KAFKA__GUARANTEE": guarantee}
        with Project(settings | {"DEMO_RATE": str(RATE)}) as project:
            under_load(project, guarantee)
    return 0


def build(project: Project) -> None:
    project.compose("build")
    usual = with_defaults(SERVICES["worker"]["build"]["args"]["BASE"])
    base = os.environ.get("PYTHON_IMAGE", usual)
    whole, below = (size / MEGABYTE for size in image_bytes([IMAGE, base]))
    announce(f"image: {whole:.0f} MB, {whole - below:.0f} on top of its base of {below:.0f}")
    assert whole - below < MOST_MEGABYTES


def first_label(project: Project) -> None:
    begun = time.monotonic()
    project.up()
    wait_until(lambda: bool(shown(project)), "a label in view")
    announce(f"up: the first label came after {time.monotonic() - begun:.1f} s, image there")
    wait_until_shown(project, "joy                    yesssss congrats 🎉🎉$")
    wait_until(lambda: all(c.health == "healthy" for c in project.containers("worker")), "health")
    started = [container for name in OURS for container in project.containers(name)]
    assert [container.restarts for container in started] == [0] * len(started)
    wait_until(lambda: len(shown(project)) > len(EXAMPLES.read_bytes().splitlines()), "new texts")
    announce("up: two workers healthy, none started twice, new texts keep coming")


def shown(project: Project) -> list[str]:
    """Return the lines of the view of labels."""
    return [line for line in project.logs("labels") if not line.startswith("{")]


def wait_until_shown(project: Project, pattern: str) -> None:
    wait_until(lambda: any(re.match(pattern, line) for line in shown(project)), pattern)


def rights(project: Project) -> None:
    script = "id -u; grep CapEff /proc/self/status; touch /x /opt/worker/x 2>&1"
    output = project.compose("exec", "-T", "worker", "sh", "-c", script, check=False)
    user, capabilities, *touched = output.splitlines()
    assert int(user) > 0
    assert int(capabilities.split()[1], 16) == 0
    assert [line for line in touched if "Read-only" in line] == touched
    announce("rights: no root, no capabilities, nothing to write to but cache and /tmp")


def from_the_host(project: Project) -> None:
    console = "/opt/kafka/bin/kafka-console-producer.sh"
    address = f"localhost:{project.kafka_port}"
    command = ("exec", "-T", "kafka", console, "--bootstrap-server", address, "--topic", "chat")
    project.compose(*command, text='{"text": "so proud of everyone here"}\n')
    producer = KafkaProducer(bootstrap_servers=address)
    producer.send("chat", json.dumps({"text": "what a disgusting pizza"}).encode())
    producer.flush()
    producer.close()
    wait_until_shown(project, "joy.* so proud of everyone")
    wait_until_shown(project, "disgust.* what a disgusting pizza")
    letters = project.compose("run", "--rm", "--no-deps", "worker", "dead-letters", "list")
    assert "not-json" in letters
    announce(
        "host: written by the console and from Python, labelled and shown; dead letters listed"
    )


def replay(project: Project) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "chat.jsonl").write_bytes(EXAMPLES.read_bytes())
        folder.chmod(0o777)
        mounted = ("run", "--rm", "--no-deps", "--volume", f"{folder}:/data", "worker")
        output = project.compose(
            *mounted, "replay", "chat.jsonl", "-o", "labels.jsonl", check=False
        )
        labels = (folder / "labels.jsonl").read_bytes().splitlines()
        assert "306 labelled (1 of them truncated), 8 dead letters" in output, output
        assert len(labels) == 306
        (done,) = (line for line in output.splitlines() if line.startswith("done: "))
        announce(f"replay of a mounted file: {done}")


def observed(project: Project) -> None:
    project.compose("--profile", "observe", "up", "--detach", "--scale", f"worker={SCALE}")

    def up() -> int:
        targets = asked(project, "/api/v1/targets")["activeTargets"]
        return sum(target["health"] == "up" for target in targets)

    wait_until(lambda: up() == SCALE, "all workers scraped")
    project.compose("--profile", "observe", "up", "--detach", "--scale", "worker=1")
    wait_until(lambda: up() == 1, "one worker scraped")
    announce(f"observe: Prometheus found {SCALE} workers, then the one that was left")
    rules = [rule for group in asked(project, "/api/v1/rules")["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}


def asked(project: Project, path: str) -> dict[str, Any]:
    try:
        with closing(HTTPConnection("127.0.0.1", project.prometheus_port, PATIENCE)) as connection:
            connection.request("GET", path)
            data = json.loads(connection.getresponse().read())["data"]
    except ConnectionError:
        return {"activeTargets": [], "groups": []}
    assert isinstance(data, dict)
    return data


def cannot_start(project: Project) -> None:
    with worker_with(project, WORKER_MODEL="/absent"):
        time.sleep(LOOKING_SECONDS)
        (container,) = project.containers("worker")
        assert container.restarts <= MOST_RESTARTS
        last = project.logs("worker")[-1]
        assert last.startswith("worker: "), last
        announce(
            f"without a model: {container.restarts} restarts in {LOOKING_SECONDS:.0f} s; {last}"
        )
    with worker_with(project, WORKER_KAFKA__BROKERS="nowhere:9092"):
        time.sleep(LOOKING_SECONDS)
        (container,) = project.containers("worker")
        assert (container.running, container.restarts) == (True, 0)
        last = project.logs("worker")[-1]
        assert "the brokers" in last, last
        announce(f"without brokers: it waits; {last}")
    with worker_with(project, WORKER_CACHE__DIRECTORY="/proc/cache"):
        wait_until(lambda: "disk cache in trouble" in "".join(project.logs("worker")), "a warning")
        (container,) = project.containers("worker")
        assert (container.running, container.restarts) == (True, 0)
        announce("without a cache that can be written: it says so, and works")


@contextmanager
def worker_with(project: Project, **settings: str) -> Iterator[None]:
    """Bring up one new worker with settings as a file .env would give them."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump({"services": {"worker": {"environment": settings}}}, file)
        file.flush()
        project.compose("rm", "--stop", "--force", "worker")
        files = ("--file", str(ROOT / "compose.yaml"), "--file", file.name)
        project.compose(*files, "up", "--detach", "--no-deps", "--scale", "worker=1", "worker")
        yield


def under_load(project: Project, guarantee: str) -> None:
    scaled = ("--scale", f"worker={SCALE}", "worker", "demo")
    project.up("--scale", "worker=2", "worker", "demo")
    stage = ComposeStage(project)
    wait_until(lambda: bool(stage.kafka.committed(stage.group, stage.input)), "first positions")
    project.up(*scaled)
    time.sleep(LOAD_SECONDS)

    begun = time.monotonic()
    project.compose("stop", "worker")
    announce(f"{guarantee}: {SCALE} workers stopped under load in {time.monotonic() - begun:.1f} s")
    assert [c.exit_code for c in project.containers("worker")] == [0] * SCALE
    project.up(*scaled)
    time.sleep(LOAD_SECONDS)

    project.compose("kill", "worker")
    project.up(*scaled)
    time.sleep(LOAD_SECONDS)

    project.compose("restart", "kafka")
    time.sleep(LOAD_SECONDS)
    assert [c.restarts for c in project.containers("worker")] == [0] * SCALE

    project.compose("stop", "demo")
    stage.wait_until_done()
    report = verify(stage, Classifier.load())
    print(report)
    assert report.messages > RATE
    wrong = {name: number for name, number in report.counts().items() if name != "messages"}
    if guarantee == "at-least-once":
        # Each of those killed may have had a chunk in hand, and each the broker's restart took.
        wrong.pop("duplicated")
    assert set(wrong.values()) == {0}, wrong


def announce(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
