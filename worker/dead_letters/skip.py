"""`worker dead-letters skip` moves a group past record batches that cannot be decoded.

Unless `kafka.undecodable` lets it go on, a worker stops at such a record batch. A person goes past it
here, for a group whose workers have stopped: a dead letter keeps its bytes and says where it was, and
then the group's offset moves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kafka import TopicPartition
from kafka import errors as kafka_errors

from worker.errors import ConfigurationError, WorkerError
from worker.events.records import DeadLetter, ErrorKind
from worker.terminal.confirmations import confirmed
from worker.terminal.sentences import show
from worker.transports.base import ChunkAbandonedError
from worker.transports.kafka.batches import failures
from worker.transports.kafka.client_internals import close_by_force
from worker.transports.kafka.clients import (
    explained_kafka_errors,
    new_admin,
    new_consumer,
    new_producer,
)
from worker.transports.kafka.deadline import Deadline
from worker.transports.kafka.durations import in_ms
from worker.transports.kafka.marks import Mark
from worker.transports.kafka.publication import coordinates_of
from worker.transports.kafka.publishers import TOO_LARGE, send_all
from worker.transports.kafka.records import dead_letter, record_of, shortened
from worker.transports.kafka.undecodable import undecodable_at

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kafka import KafkaConsumer
    from kafka.structs import OffsetAndMetadata

    from worker.events.records import TopicPlace
    from worker.settings.schema import KafkaSettings
    from worker.transports.kafka.batches import SentRecordBatch
    from worker.transports.kafka.record_batches import Undecodable
    from worker.transports.kafka.records import ProducerRecord

_WITHOUT_MEMBERS: Final = ("Empty", "Dead")


def skip(settings: KafkaSettings, place: TopicPlace, *, yes: bool) -> None:
    """Move the group past the record batch at a place, once a person has confirmed it.

    Raises:
        ConfigurationError: the topic is no input topic.
        WorkerError: the group has members, or what it comes to next can be decoded.

    """
    if place.topic not in settings.input_topics:
        raise ConfigurationError(
            f"{place.topic} is not among kafka.input_topics", "name one that the group reads"
        )
    partition = TopicPartition(place.topic, place.partition)
    with explained_kafka_errors():
        consumer = new_consumer(settings)
        try:
            consumer.assign([partition])
            committed = _committed(consumer, partition, settings)
            _refuse_members(settings)
            found = _undecodable(settings, partition, committed.offset, place)
            end = found[-1].last_offset + 1
            show(
                f"offsets {found[0].offset} to {end - 1} of partition {place.partition} of "
                f"{place.topic} cannot be decoded"
            )
            if confirmed("go past them for good?", yes=yes):
                _leave_letters(settings, found)
                _move(consumer, partition, committed, end, settings)
                show(f"the group {settings.group} goes on at offset {end}")
        finally:
            consumer.close()


def _committed(
    consumer: KafkaConsumer, partition: TopicPartition, settings: KafkaSettings
) -> OffsetAndMetadata:
    committed = consumer.committed(
        partition, metadata=True, timeout_ms=in_ms(settings.deadline_seconds)
    )
    if committed is None:
        raise WorkerError(
            f"the group {settings.group} has no offset for partition {partition.partition} of "
            f"{partition.topic}",
            "see kafka.group and the name of the topic",
        )
    return committed


def _refuse_members(settings: KafkaSettings) -> None:
    admin = new_admin(settings)
    try:
        group = admin.describe_groups([settings.group])[settings.group]
    finally:
        admin.close()
    if group["group_state"] not in _WITHOUT_MEMBERS:
        raise WorkerError(
            f"the group {settings.group} is not empty, but {group['group_state'] or 'unknown'}",
            "stop all its workers first",
        )


def _undecodable(
    settings: KafkaSettings, partition: TopicPartition, committed: int, place: TopicPlace
) -> list[Undecodable]:
    found = undecodable_at(settings, partition, committed)
    if not found:
        raise WorkerError(
            f"offset {committed}, where the group {settings.group} stands, can be decoded: there "
            "is nothing to skip",
            "start the workers: they stop where they cannot go on, and say so",
        )
    last = found[-1].last_offset
    if not committed <= place.offset <= last:
        raise WorkerError(
            f"the group {settings.group} stands at offset {committed}, and what cannot be decoded "
            f"there ends at {last}",
            f"offset {place.offset} is no part of it",
        )
    return found


def _leave_letters(settings: KafkaSettings, found: Iterable[Undecodable]) -> None:
    for rest in found:
        letter = DeadLetter(record_of(rest), ErrorKind.UNDECODABLE, rest.reason)
        whole = dead_letter(rest, letter, settings.dead_letter_topic)
        try:
            _send(settings, rest, whole)
        except TOO_LARGE:
            _send(settings, rest, shortened(rest, whole))


def _send(settings: KafkaSettings, rest: Undecodable, letter: ProducerRecord) -> None:
    """Send a dead letter with a producer of its own: one fails with the first record that does.

    Raises:
        KafkaError: the brokers do not answer, or refuse.

    """
    producer = new_producer(settings)
    sent: list[SentRecordBatch] = []
    try:
        if send_all(
            producer, {coordinates_of(rest): letter}, sent, Deadline(settings.deadline_seconds)
        ):
            raise kafka_errors.MessageSizeTooLargeError
        for error in failures(sent).values():
            raise error
    except ChunkAbandonedError:
        raise kafka_errors.KafkaTimeoutError from None
    finally:
        close_by_force(producer)


def _move(
    consumer: KafkaConsumer,
    partition: TopicPartition,
    committed: OffsetAndMetadata,
    end: int,
    settings: KafkaSettings,
) -> None:
    mark = Mark.read(committed.metadata).passed(end)
    # The broker refuses this commit if a worker has joined meanwhile.
    consumer.commit({partition: mark.at(end)}, timeout_ms=in_ms(settings.deadline_seconds))
