"""What a test of `worker run` needs: topics of its own, worker processes, and what came out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from tests.kafka.broker import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from kafka.consumer.fetcher import ConsumerRecord

    from tests.kafka.broker import Kafka

    Place = tuple[int, int]

# So that what a fault sets off comes within seconds.
QUICK = {
    "KAFKA__SESSION_TIMEOUT_SECONDS": "3",
    "KAFKA__TRANSACTION_TIMEOUT_SECONDS": "4",
    "KAFKA__REQUEST_TIMEOUT_SECONDS": "2",
    "KAFKA__DEADLINE_SECONDS": "6",
    "KAFKA__MAX_POLL_INTERVAL_SECONDS": "12",
    "RUN__LISTEN": "off",
    "CACHE__ENABLED": "false",
    "LOG__FORMAT": "json",
}


class WorkerProcess:
    """A `worker run` of its own process."""

    def __init__(
        self, folder: Path, name: str, environment: Mapping[str, str], module: str = "worker"
    ) -> None:
        self.log_path = folder / f"{name}.log"
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, "run"],
                env={**os.environ, **environment},
                stderr=log,
                stdout=log,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        return self.log_path.read_text(encoding="utf-8")

    def events(self) -> list[dict[str, Any]]:
        """Return what the worker has logged."""
        lines = self.output.splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def wait_for(self, event: str, **values: object) -> None:
        """Wait until the worker has logged an event."""

        def logged() -> bool:
            return any(
                entry["event"] == event
                and all(entry.get(name) == value for name, value in values.items())
                for entry in self.events()
            )

        wait_until(lambda: logged() or not self.running, f"{event} {values}")
        assert logged(), self.output

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def wait(self) -> int:
        """Wait for the end; returns the exit code."""
        try:
            wait_until(lambda: not self.running, f"the end of {self.log_path.stem}")
        except TimeoutError:
            print(self.output)
            raise
        return self.process.wait()

    def stop(self) -> int:
        """Ask it to stop, and wait."""
        self.process.terminate()
        return self.wait()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


@dataclass
class Stage:
    """Topics, a group, and the workers that a test starts."""

    kafka: Kafka
    names: Iterator[str]
    folder: Path
    partitions: int = 2
    bootstrap: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    workers: list[WorkerProcess] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.input, self.output, self.dead = (next(self.names) for _ in range(3))
        self.group = next(self.names)
        self.kafka.create_topic(self.input, partitions=self.partitions)
        self.kafka.create_topic(self.output, partitions=self.partitions)
        self.kafka.create_topic(self.dead)
        self.settings = QUICK | {
            "KAFKA__BROKERS": self.bootstrap or self.kafka.bootstrap,
            "KAFKA__INPUT_TOPICS": self.input,
            "KAFKA__OUTPUT_TOPIC": self.output,
            "KAFKA__DEAD_LETTER_TOPIC": self.dead,
            "KAFKA__GROUP": self.group,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            if worker.running:
                with suppress(ProcessLookupError):
                    worker.resume()
                worker.kill()

    def worker(self, module: str = "worker", **settings: str) -> WorkerProcess:
        """Start a worker, or a module of the tests that is one with a fault."""
        name = f"worker-{len(self.workers)}"
        more = {"KAFKA__CLIENT_ID": name} | settings
        variables = {f"WORKER_{key}": value for key, value in (self.settings | more).items()}
        worker = WorkerProcess(self.folder, name, variables | self.environment, module)
        self.workers.append(worker)
        return worker

    def produce(self, texts: Sequence[str], **more: Any) -> None:
        """Produce events with these texts, partition by partition in turn."""
        self.produce_values([json.dumps({"text": text}).encode() for text in texts], **more)

    def produce_values(self, values: Sequence[bytes | None], **more: Any) -> None:
        """Produce records with these values."""
        self.kafka.produce(
            self.input,
            [
                (b"key-%d" % (n % 3), value, [], n % self.partitions, None)
                for n, value in enumerate(values)
            ],
            **more,
        )

    def ends(self) -> dict[int, int]:
        """Return where the input ends, in records."""
        ends = dict.fromkeys(range(self.partitions), 0)
        for record in self.kafka.read(self.input):
            ends[record.partition] = max(ends[record.partition], record.offset + 1)
        return ends

    def wait_until_done(self) -> None:
        """Wait until everything that was produced is committed."""
        ends = {partition: end for partition, end in self.ends().items() if end}

        def done() -> bool:
            committed = self.kafka.committed(self.group, self.input)
            return all(committed.get(partition, 0) >= end for partition, end in ends.items())

        try:
            wait_until(done, "the end of the input")
            self.wait_until_closed()
        except BaseException:
            for worker in self.workers:
                print(worker.log_path.name, worker.output, sep="\n")
            raise

    def wait_until_closed(self) -> None:
        """Wait until no transaction is open that hides what comes after it.

        The markers of a transaction come after its commit is acknowledged; that of a worker that
        was killed ends with its time.
        """

        topics = (self.output, self.dead)
        wait_until(lambda: all(map(self.kafka.is_settled, topics)), "the end of all transactions")

    def labels(self, isolation: str = "read_committed") -> list[ConsumerRecord]:
        return self.kafka.read(self.output, isolation)

    def dead_letters(self) -> list[ConsumerRecord]:
        return self.kafka.read(self.dead)


def place_of(record: ConsumerRecord) -> Place:
    """Return the partition and offset of the event that a record was made of."""
    headers = dict(record.headers)
    return int(headers["worker-partition"]), int(headers["worker-offset"])


def header(record: ConsumerRecord, name: str) -> str:
    values = [value for key, value in record.headers if key == name]
    assert values, name
    return str(values[-1].decode())
