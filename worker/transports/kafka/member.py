"""One member of a consumer group: its consumer, from the connection until it is thrown away.

A consumer is thrown away after an error that leaves its state unknown, and made anew. What a poll returns is
judged by the group's metadata of that very moment.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from kafka import TopicPartition
from kafka import errors as kafka_errors

from worker.transports.kafka.client_internals import close_connections
from worker.transports.kafka.clients import is_member, new_consumer, resume
from worker.transports.kafka.durations import in_ms

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Protocol

    from kafka import KafkaConsumer
    from kafka.structs import ConsumerGroupMetadata

    from worker.settings.schema import KafkaSettings
    from worker.transports.kafka.marks import Records

    class Reported(Protocol):
        """What there is to see from outside of a member."""

        joined: bool
        rebalances: int
        lag: Mapping[TopicPartition, int]
        hidden: Mapping[TopicPartition, int]


POLL_SECONDS: Final = 0.2
CALL_SECONDS: Final = 5.0


class Polled(NamedTuple):
    """What a poll returned, and the group of that moment; `changed` says that it is another one."""

    records: Records
    group: ConsumerGroupMetadata
    changed: bool
    at: float


class GroupMember:
    """A consumer that comes and goes."""

    def __init__(self, settings: KafkaSettings, report: Reported) -> None:
        """Connect nothing yet; `report` is told of the group and of the lag."""
        self._settings = settings
        self._report = report
        self._consumer: KafkaConsumer | None = None
        self._generation: int | None = None
        self._outside_since = 0.0

    @property
    def consumer(self) -> KafkaConsumer:
        """Return the consumer.

        Raises:
            KafkaConnectionError: there is none.

        """
        if self._consumer is None:
            raise kafka_errors.KafkaConnectionError
        return self._consumer

    def connect(self) -> None:
        """Make a consumer that will join the group as it polls.

        Raises:
            ConfigurationError: certificates or secrets cannot be used.
            KafkaError: the brokers do not answer, or refuse.

        """
        self._consumer = new_consumer(self._settings)
        self._outside_since = time.monotonic()
        self._consumer.subscribe(list(self._settings.input_topics))

    def poll(self, most_records: int) -> Polled:
        """Return records that have come, no more than so many, or none after a short while."""
        records = self.consumer.poll(timeout_ms=in_ms(POLL_SECONDS), max_records=most_records)
        # What the commit of these records will be judged by; read later, it would be another's.
        group = self.consumer.group_metadata()
        return Polled(records, group, self._see(group), time.monotonic())

    def stay(self) -> bool:
        """Poll for the sake of membership, with everything paused; return whether it is a member."""
        consumer = self.consumer
        consumer.pause(*consumer.assignment())
        # Records of a partition that is new here come again.
        consumer.poll(timeout_ms=in_ms(POLL_SECONDS))
        self._see(consumer.group_metadata())
        return self._report.joined

    def is_kept_waiting(self, seconds: float) -> bool:
        """Return whether this consumer has not got into the group for so long, once in that time."""
        now = time.monotonic()
        waited = now - self._outside_since > seconds
        if waited:
            self._outside_since = now
        return waited

    def go_on_from(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Read on from offsets, one for each partition that is assigned."""
        for partition, offset in offsets.items():
            self.consumer.seek(partition, offset)
        resume(self.consumer)

    def position(self, partition: TopicPartition) -> int:
        """Return the offset of the record that is read next."""
        return int(self.consumer.position(partition, timeout_ms=in_ms(CALL_SECONDS)))

    def see_lag(self, partition: TopicPartition, position: int) -> None:
        """Take note of the lag by what the last answer of the broker said of the partition's end."""
        end = self.end_seen(partition) or position
        self._report.lag = {**self._report.lag, partition: end - position}

    def end_seen(self, partition: TopicPartition) -> int:
        """Return where a partition ended when its records were fetched; 0 if none were."""
        return self.consumer.highwater(partition) or 0

    def look_at_positions(self) -> dict[TopicPartition, int]:
        """Return the positions of all assigned partitions, and ask the brokers where they end.

        That is where they can be read to; what comes behind an open transaction is hidden.

        Raises:
            KafkaError: the brokers do not answer.

        """
        positions = {p: self.position(p) for p in self.consumer.assignment()}
        # Also without any partition it shows whether the brokers answer.
        asked: Iterable[TopicPartition] = positions or [
            TopicPartition(self._settings.input_topics[0], 0)
        ]
        ends = self.consumer.end_offsets(list(asked), timeout_ms=in_ms(CALL_SECONDS))
        self._report.lag = {p: max(0, ends[p] - position) for p, position in positions.items()}
        self._report.hidden = {p: max(0, self.end_seen(p) - ends[p]) for p in positions}
        return positions

    def drop(self, timeout: float) -> None:
        """Leave the group and throw the consumer away, within some seconds."""
        consumer, self._consumer = self._consumer, None
        self._generation = None
        if consumer is not None:
            with suppress(Exception):  # whatever state it is in
                consumer.close(autocommit=False, timeout_ms=in_ms(timeout))
            # Where leaving the group fails, that ends before the connections do.
            with suppress(Exception):
                close_connections(consumer)

    def _see(self, group: ConsumerGroupMetadata) -> bool:
        """Take note of the group; return whether it is another than before."""
        self._report.joined = is_member(self.consumer, group)
        if self._report.joined:
            self._outside_since = time.monotonic()
        generation = group.generation_id if self._report.joined else None
        changed = generation != self._generation
        if changed and generation is not None:
            self._report.rebalances += 1
            self._report.lag = {}
            self._report.hidden = {}
        self._generation = generation
        return changed
