"""Reads events again that were too large for their dead letters, from where they still are."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Self

from kafka import TopicPartition
from kafka import errors as kafka_errors

from worker.transports.kafka.clients import new_consumer
from worker.transports.kafka.durations import in_ms
from worker.transports.kafka.records import sha256_of

if TYPE_CHECKING:
    from kafka.consumer.fetcher import ConsumerRecord

    from worker.dead_letters.letters import Letter
    from worker.settings.schema import KafkaSettings

_POLL_SECONDS: Final = 0.2
# Headers may have been too large for the worker; here they are wanted.
_MORE_HEADER_BYTES: Final = 2**26


class Originals:
    """The events of dead letters, on the topics that these name."""

    def __init__(self, settings: KafkaSettings) -> None:
        """Connect.

        Raises:
            KafkaError: the brokers do not answer, or refuse.

        """
        self._timeout = settings.deadline_seconds
        self._consumer = new_consumer(
            settings, _MORE_HEADER_BYTES, group_id=None, max_poll_records=1
        )

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections to the brokers."""
        self._consumer.close()

    def whole(self, letter: Letter) -> Letter | None:
        """Return a letter with its event, or None if that is no longer where it was.

        Raises:
            KafkaError: the brokers do not answer, or refuse.

        """
        if letter.omitted is None:
            return letter
        if letter.partition not in (self._consumer.partitions_for_topic(letter.source) or ()):
            return None
        partition = TopicPartition(letter.source, letter.partition)
        record = self._record(partition, letter.offset)
        if record is None or sha256_of(record.value) != letter.omitted.sha256:
            return None
        return letter.with_event(record.value, record.key, record.headers)

    def _record(self, partition: TopicPartition, offset: int) -> ConsumerRecord | None:
        """Return the record at an offset, or None if there is none."""
        timeout = in_ms(self._timeout)
        self._consumer.assign([partition])
        (first,) = self._consumer.beginning_offsets([partition], timeout_ms=timeout).values()
        (end,) = self._consumer.end_offsets([partition], timeout_ms=timeout).values()
        if not first <= offset < end:
            return None
        self._consumer.seek(partition, offset)
        gives_up = time.monotonic() + self._timeout
        while self._consumer.position(partition, timeout_ms=timeout) <= offset:
            for record in self._consumer.poll(timeout_ms=in_ms(_POLL_SECONDS)).get(partition, ()):
                return record if record.offset == offset else None
            if time.monotonic() > gives_up:
                raise kafka_errors.KafkaTimeoutError
        return None
