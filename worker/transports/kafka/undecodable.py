"""Record batches that cannot be decoded: what a worker says that must not go past one by itself."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kafka import errors as kafka_errors

from worker.errors import WorkerError
from worker.transports.kafka.clients import new_consumer
from worker.transports.kafka.durations import in_ms
from worker.transports.kafka.record_batches import Undecodable

if TYPE_CHECKING:
    from kafka import TopicPartition

    from worker.settings.schema import KafkaSettings


class UndecodableError(WorkerError):
    """A record batch that cannot be decoded; the worker must not go past it by itself."""

    def __init__(self, rest: Undecodable) -> None:
        """Say where the record batch is, and how a person goes past it."""
        super().__init__(
            f"the batch at offset {rest.offset} of partition {rest.partition} of {rest.topic} cannot "
            f"be decoded: {rest.reason}",
            'look at it with other tools; kafka.undecodable = "dead-letter" lets workers go past '
            "such batches; to go past this one alone, stop all workers of the group and run: "
            f"worker dead-letters skip {rest.topic} {rest.partition} {rest.offset}",
        )


def undecodable_at(
    settings: KafkaSettings, partition: TopicPartition, offset: int
) -> list[Undecodable]:
    """Return what cannot be decoded from an offset on, up to the first record that can.

    Raises:
        KafkaError: the brokers do not answer, or refuse.

    """
    found: list[Undecodable] = []
    consumer = new_consumer(settings, group_id=None, max_poll_records=1)
    try:
        consumer.assign([partition])
        consumer.seek(partition, offset)
        last = consumer.end_offsets([partition])[partition]
        gives_up = time.monotonic() + settings.deadline_seconds
        while consumer.position(partition, timeout_ms=in_ms(settings.deadline_seconds)) < last:
            if time.monotonic() > gives_up:
                raise kafka_errors.KafkaTimeoutError
            for record in consumer.poll(timeout_ms=200).get(partition, ()):
                if not isinstance(record, Undecodable):
                    return found
                found.append(record)
    finally:
        consumer.close()
    return found
