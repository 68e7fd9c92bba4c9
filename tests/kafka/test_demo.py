"""A first try on a broker without topics: create them, write a chat, label it, and look at it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.kafka.broker import wait_until
from tests.kafka.health import LISTEN, wait_until_ready
from worker import cli
from worker.demo.chat import example_messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.kafka.broker import Kafka
    from tests.kafka.stage import Stage

EXAMPLES = example_messages()
# The broker accepts events of this size by default; a dead letter has headers of ours, too.
EVENT_BYTES = 1048588


class Background:
    """A command that runs until it is asked to stop."""

    def __init__(self, stage: Stage, *arguments: str) -> None:
        self.log = stage.folder / f"{arguments[0]}.log"
        settings = {f"WORKER_{name}": value for name, value in stage.settings.items()}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "worker", *arguments],
                env={**os.environ, **settings},
                stdout=log,
                stderr=log,
            )

    @property
    def lines(self) -> list[str]:
        """Return the lines that it has printed, without the first, which says that it has begun."""
        return self.log.read_text(encoding="utf-8").splitlines()[1:]

    def wait_until_it_begins(self) -> None:
        wait_until(lambda: b"\n" in self.log.read_bytes(), "its first line")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait()


@pytest.fixture
def demo(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Return a stage whose settings also hold for commands of this process."""
    for name, value in stage.settings.items():
        monkeypatch.setenv(f"WORKER_{name}", value)
    return stage


@pytest.fixture
def background(demo: Stage) -> Iterator[Callable[..., Background]]:
    """Return a function that starts a command, which ends with the test at the latest."""
    with ExitStack() as stack:

        def start(*arguments: str) -> Background:
            started = Background(demo, *arguments)
            stack.callback(started.process.wait)
            stack.callback(started.process.kill)
            return started

        yield start


def test_topics_are_created_once_with_room_for_dead_letters(
    kafka: Kafka,
    topic_names: Iterator[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    events, more_events, labels, dead = (next(topic_names) for _ in range(4))
    monkeypatch.setenv("WORKER_KAFKA__BROKERS", kafka.bootstrap)
    command = [
        *("create-topics", "--partitions", "3", "--replicas", "1"),
        *("--input-topics", f"{events},{more_events}"),
        *("--output-topic", labels, "--dead-letter-topic", dead),
    ]
    names = [events, more_events, labels, dead]
    assert cli.main(command) == 0
    assert capsys.readouterr().out.splitlines() == [f"{n}: created, 3 partitions" for n in names]
    assert cli.main([*command, "--partitions", "5"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{n}: is there, 3 partitions" for n in names]
    monkeypatch.setenv("WORKER_KAFKA__MAX_MESSAGE_BYTES", str(2 * EVENT_BYTES))
    cli.main(["check", *command[5:]])
    findings = capsys.readouterr().out.splitlines()
    assert not [line for line in findings if "bytes" in line and not line.startswith("ok")]


def test_brokers_that_never_answer_are_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORKER_KAFKA__REQUEST_TIMEOUT_SECONDS", "1")
    assert cli.main(["create-topics", "--brokers", "127.0.0.1:9", "--wait", "3"]) == 1
    assert "waiting" in (printed := capsys.readouterr().err)
    assert printed.splitlines()[-1].startswith("worker: the brokers do not answer")


def test_a_chat_is_written_labelled_and_shown(
    demo: Stage, background: Callable[..., Background]
) -> None:
    worker = demo.worker(INCLUDE_TEXT="true", **LISTEN)
    wait_until_ready(worker)
    view = background("view", "--follow")
    view.wait_until_it_begins()
    number = len(EXAMPLES) + 50
    arguments = ["demo", "--rate", "2000", "--count", str(number), "--seed", "7"]
    assert cli.main(arguments) == 0
    demo.wait_until_done()
    written = {record.value for record in demo.kafka.read(demo.input)}
    assert written > {message.value for message in EXAMPLES}
    assert len(demo.labels()) + len(demo.dead_letters()) == number
    wait_until(lambda: len(view.lines) == len(demo.labels()), "all labels in view")
    assert "joy                    yesssss congrats 🎉🎉" in view.lines
    assert view.stop() == 0


def test_a_view_begins_with_the_last_labels_and_says_what_has_no_text(
    demo: Stage, background: Callable[..., Background]
) -> None:
    label = {"labels": ["joy"], "scores": {}}
    values = [*(label | {"text": f"gg {n}"} for n in range(30)), label, [], {"labels": 7}]
    demo.kafka.produce(
        demo.output, [(None, json.dumps(value).encode(), [], 0, None) for value in values]
    )
    view = background("view", "--follow")
    wait_until(lambda: len(view.lines) == 10, "the last of a partition")
    assert view.lines[-4:] == [
        "joy                    gg 29",
        "joy                    (there is no text: see include_text)",
        "(a record that is no label)",
        "(a record that is no label)",
    ]
    assert view.stop() == 0


def test_a_view_of_a_topic_that_is_missing_says_so(
    demo: Stage, topic_names: Iterator[str], capsys: pytest.CaptureFixture[str]
) -> None:
    topic = next(topic_names)
    assert cli.main(["view", "--follow", "--output-topic", topic]) == 2
    assert f"the topic {topic} does not exist" in capsys.readouterr().err
    assert demo.workers == []


def test_a_demo_writes_until_it_is_asked_to_stop(
    demo: Stage, background: Callable[..., Background]
) -> None:
    endless = background("demo", "--rate", "500")
    wait_until(lambda: len(demo.kafka.read(demo.input)) > len(EXAMPLES), "what is made up")
    assert endless.stop() == 0
    end = json.loads(endless.lines[-1])
    assert (end["event"], end["failed"]) == ("stopped", 0)
    assert end["written"] == len(demo.kafka.read(demo.input))


def test_a_demo_reports_what_it_cannot_write(
    demo: Stage, topic_names: Iterator[str], capsys: pytest.CaptureFixture[str]
) -> None:
    topic = next(topic_names)
    assert cli.main(["demo", "--rate", "9", "--count", "1", "--input-topics", topic]) == 1
    assert "messages are not written" in capsys.readouterr().err
    assert demo.workers == []


def test_health_is_what_the_worker_says(demo: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    worker = demo.worker(**LISTEN)
    wait_until_ready(worker)
    (address,) = (e["address"] for e in worker.events() if e["event"] == "listening")
    port = address.rpartition(":")[2]
    for listen in (address, f"0.0.0.0:{port}"):
        assert cli.main(["health", "--listen", listen]) == 0
        assert capsys.readouterr().out == "live\n"
    assert worker.stop() == 0
    assert cli.main(["health", "--listen", address]) == 1
    assert capsys.readouterr().out == f"no worker answers at {address}\n"
