"""`worker dead-letters skip` moves a group past a record batch that the client cannot decode.

A worker stops at such a record batch and never goes past it by itself. A person does so here, for a
group whose workers have stopped: a dead letter records where it was, and then the group's offset
moves.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from kafka import TopicPartition

from worker.errors import ConfigurationError, WorkerError
from worker.events.records import ErrorKind, TopicPlace
from worker.terminal.confirmations import confirmed
from worker.transports.kafka.client_internals import close_by_force
from worker.transports.kafka.clients import (
    explained_kafka_errors,
    new_admin,
    new_consumer,
    new_producer,
)
from worker.transports.kafka.durations import in_ms
from worker.transports.kafka.marks import Mark
from worker.transports.kafka.records import KIND, NULLS, OFFSET, PARTITION, REASON, TOPIC
from worker.transports.kafka.undecodable import end_of_undecodable, readable

if TYPE_CHECKING:
    from kafka import KafkaConsumer
    from kafka.structs import OffsetAndMetadata

    from worker.settings.schema import KafkaSettings

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
            end = _end(settings, partition, committed.offset, place)
            stretch = f"offsets {committed.offset} to {end - 1}"
            print(f"{stretch} of partition {place.partition} of {place.topic} cannot be decoded")
            if confirmed("go past them for good?", yes=yes):
                _leave_letter(settings, place, stretch)
                _move(consumer, partition, committed, end, settings)
                print(f"the group {settings.group} goes on at offset {end}")
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


def _end(
    settings: KafkaSettings, partition: TopicPartition, committed: int, place: TopicPlace
) -> int:
    if readable(settings, partition, committed):
        raise WorkerError(
            f"offset {committed}, where the group {settings.group} stands, can be decoded: there "
            "is nothing to skip",
            "start the workers: they stop where they cannot go on, and say so",
        )
    end = end_of_undecodable(settings, partition, committed)
    if not committed <= place.offset < end:
        raise WorkerError(
            f"the group {settings.group} stands at offset {committed}, and what cannot be decoded "
            f"there ends at {end - 1}",
            f"offset {place.offset} is no part of it",
        )
    return end


def _leave_letter(settings: KafkaSettings, place: TopicPlace, stretch: str) -> None:
    reason = f"the {stretch} cannot be decoded by the client, and were gone past"
    headers = {
        TOPIC: place.topic,
        PARTITION: str(place.partition),
        OFFSET: str(place.offset),
        KIND: ErrorKind.UNDECODABLE,
        REASON: reason,
        NULLS: json.dumps(["value"]),
    }
    producer = new_producer(settings)
    try:
        producer.send(
            settings.dead_letter_topic,
            b"",
            headers=[(name, value.encode()) for name, value in headers.items()],
        ).get(timeout=settings.deadline_seconds)
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
