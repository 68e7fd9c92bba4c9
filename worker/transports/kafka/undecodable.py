"""Batches that the client cannot decode: a wrong checksum, an unknown codec, broken headers.

A consumer that has met one reads nothing else from then on, so each look takes one of its own.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.consumer.fetcher import Fetcher

from worker.errors import WorkerError
from worker.transports.kafka.clients import new_consumer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from worker.settings.schema import KafkaSettings

# What the client raises for such a batch; whatever else it fails with may come of one, too.
UNREADABLE: Final = (kafka_errors.UnsupportedCodecError, kafka_errors.CorruptRecordError)
_SECONDS_FOR_A_RECORD: Final = 5.0


class UndecodableError(WorkerError):
    """A batch that the client cannot read; the worker must not go past it by itself."""

    def __init__(self, topic: str, partition: int, offset: int) -> None:
        """Keep the place."""
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
    """Return whether the client can decode what comes at an offset; nothing there counts as yes.

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
    except Exception:  # noqa: BLE001 - a batch can break the client in any way
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
    # Batch by batch: what lies between two of them must not be passed over.
    while end == offset or (end < last and not readable(settings, partition, end)):
        end = _end_of_batch(settings, partition, end)
    return end


def _end_of_batch(settings: KafkaSettings, partition: TopicPartition, offset: int) -> int:
    """Return the offset behind a batch, which its header tells."""
    ends: list[int] = []

    class Headers(Fetcher.PartitionRecords):  # type: ignore[misc]
        def _unpack_records(self, _: TopicPartition, batches: Any, *__: object) -> Iterator[Any]:  # noqa: ANN401 - has no types
            ends.extend(batch.next_offset for batch in batches)
            self.drain()
            yield from ()

    consumer = new_consumer(settings, group_id=None)
    consumer._fetcher.PartitionRecords = Headers  # noqa: SLF001 - in public it decodes all it reads
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
