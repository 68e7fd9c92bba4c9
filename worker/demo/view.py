"""`worker view`: shows people texts and labels side by side, of a file or as they come."""

from __future__ import annotations

import io
import json
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Final

from kafka import TopicPartition

from worker.errors import ConfigurationError, WorkerError
from worker.logs.logger import log
from worker.logs.stacks import redacted_errors
from worker.terminal.sentences import printable, show
from worker.terminal.signals import StopSignal
from worker.transports.kafka.clients import explained_kafka_errors, new_consumer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from kafka import KafkaConsumer

    from worker.settings.schema import KafkaSettings

_LABELS_WIDTH: Final = 22
# How many labels of each partition are shown first; `tail -f` begins with as many lines.
_SHOWN_FIRST: Final = 10
_POLL_SECONDS: Final = 0.5


def view(path: str) -> None:
    """Print a line for each labelled message of a file, or of standard input if `path` is `-`.

    Raises:
        WorkerError: standard input is closed, the file cannot be read, or it is not what
            `worker replay --include-text` writes.

    """
    _allow_any_text()
    for number, line in enumerate(_lines(path), 1):
        try:
            message = json.loads(line)
            show(_side_by_side(message, message["text"]))
        except (ValueError, TypeError, KeyError, RecursionError):
            raise WorkerError(
                f"{path}, line {number} holds no labels with their text",
                "write it with: worker replay --include-text",
            ) from None


def follow(settings: KafkaSettings) -> None:
    """Print the last labels of the output topic, then each new one, until asked to stop.

    Raises:
        ConfigurationError: the topic does not exist.
        WorkerError: the brokers do not answer, or refuse.

    """
    _allow_any_text()
    with redacted_errors(), explained_kafka_errors(), StopSignal() as stop:
        consumer = new_consumer(settings, group_id=None, auto_offset_reset="earliest")
        with closing(consumer):
            _begin_near_the_end(consumer, settings.output_topic)
            log.info("following", topic=settings.output_topic)
            while stop.received is None:
                for records in consumer.poll(timeout_ms=int(1000 * _POLL_SECONDS)).values():
                    for record in records:
                        show(_followed(record.value))


def _begin_near_the_end(consumer: KafkaConsumer, topic: str) -> None:
    numbers = consumer.partitions_for_topic(topic)
    if not numbers:
        raise ConfigurationError(f"the topic {topic} does not exist", "set kafka.output_topic")
    partitions = [TopicPartition(topic, number) for number in numbers]
    consumer.assign(partitions)
    begins, ends = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
    for partition in partitions:
        consumer.seek(partition, max(begins[partition], ends[partition] - _SHOWN_FIRST))


def _followed(value: bytes) -> str:
    try:
        message = json.loads(value)
        return _side_by_side(message, message.get("text", "(there is no text: see include_text)"))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return "(a record that is no label)"


def _side_by_side(message: Mapping[str, Any], text: str) -> str:
    given = printable(", ".join(message["labels"])) or "-"
    return f"{given:<{_LABELS_WIDTH}} {printable(text)}"


def _allow_any_text() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that is not UTF-8 shows "?" for what it cannot show.
        sys.stdout.reconfigure(errors="replace")


def _lines(path: str) -> Iterator[bytes]:
    try:
        if path == "-":
            if sys.stdin is None:
                raise WorkerError("standard input is closed", "name a file")
            yield from sys.stdin.buffer
            return
        with open(path, "rb") as file:  # noqa: PTH123 - Path would change the path that the user gave
            yield from file
    except OSError as error:
        raise WorkerError(f"cannot read {path}: {error.strerror}", "check the path") from None
