"""Record batches that the client cannot decode: a wrong checksum, codec or header.

A consumer that has met one reads nothing else from then on, so each look at a partition takes a
consumer of its own.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from kafka import errors as kafka_errors

from worker.errors import WorkerError
from worker.transports.kafka.client_internals import read_ends_of_batches
from worker.transports.kafka.clients import new_consumer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kafka import TopicPartition

    from worker.settings.schema import KafkaSettings

# The client raises these for such a record batch, but others may come of one as well.
UNREADABLE: Final = (kafka_errors.UnsupportedCodecError, kafka_errors.CorruptRecordError)
_SECONDS_FOR_A_RECORD: Final = 5.0


class UndecodableError(WorkerError):
    """A record batch that the client cannot read; the worker must not go past it by itself."""

    def __init__(self, topic: str, partition: int, offset: int) -> None:
        """Say where the record batch is, and how a person goes past it."""
        super().__init__(
            f"the batch at offset {offset} of partition {partition} of {topic} cannot be decoded",
            "look at it with other tools; to go past it, stop all workers of the group and run: "
            f"worker dead-letters skip {topic} {partition} {offset}",
        )


def refuse_undecodable(
    settings: KafkaSettings, positions: Mapping[TopicPartition, int | None]
) -> None:
    """Read each partition by itself from where it stands; a position that is not known is passed over.

    Raises:
        UndecodableError: a partition cannot be read from there.
        KafkaError: the brokers do not answer, or refuse.

    """
    for partition, position in positions.items():
        if position is not None and not readable(settings, partition, position):
            raise UndecodableError(partition.topic, partition.partition, position)


def readable(settings: KafkaSettings, partition: TopicPartition, offset: int) -> bool:
    """Return whether the client can decode what comes at an offset, or nothing comes there.

    Raises:
        KafkaError: the brokers do not answer, or refuse.

    """
    consumer = new_consumer(settings, group_id=None, max_poll_records=1)
    try:
        consumer.assign([partition])
        consumer.seek(partition, offset)
        ends = time.monotonic() + _SECONDS_FOR_A_RECORD
        last = consumer.end_offsets([partition])[partition]
        while consumer.position(partition) < last and time.monotonic() < ends:
            if consumer.poll(timeout_ms=200):
                break
    except UNREADABLE:
        return False
    except kafka_errors.KafkaError:
        raise
    except Exception:  # noqa: BLE001 - a record batch can break the client in any way
        return False
    finally:
        consumer.close()
    return True


def end_of_undecodable(settings: KafkaSettings, partition: TopicPartition, offset: int) -> int:
    """Return the first offset after one that can be decoded, or the end of the partition.

    Raises:
        KafkaError: the brokers do not answer.

    """
    consumer = new_consumer(settings, group_id=None)
    try:
        last: int = consumer.end_offsets([partition])[partition]
    finally:
        consumer.close()
    end = offset
    # What lies between two such record batches must not be passed over: each is looked at.
    while end == offset or (end < last and not readable(settings, partition, end)):
        end = _end_of_batch(settings, partition, end)
    return end


def _end_of_batch(settings: KafkaSettings, partition: TopicPartition, offset: int) -> int:
    """Return the offset behind a record batch, which its header has."""
    consumer = new_consumer(settings, group_id=None)
    ends = read_ends_of_batches(consumer)
    try:
        consumer.assign([partition])
        consumer.seek(partition, offset)
        gives_up = time.monotonic() + _SECONDS_FOR_A_RECORD
        while not ends:
            if time.monotonic() > gives_up:
                raise kafka_errors.KafkaTimeoutError
            consumer.poll(timeout_ms=200)
    finally:
        consumer.close()
    return ends[0]
