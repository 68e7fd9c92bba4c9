"""Reads the dead-letter topic up to where it ends, and says what its records are."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Self

from kafka import TopicPartition

from worker.dead_letters.letters import Letter
from worker.errors import ConfigurationError, WorkerError
from worker.events.records import TopicPlace
from worker.transports.kafka.clients import new_consumer, resume
from worker.transports.kafka.durations import in_ms
from worker.transports.kafka.records import (
    KIND,
    OFFSET,
    PARTITION,
    REASON,
    REDRIVE,
    ROUNDS,
    TOPIC,
    original_of,
    own_headers,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from kafka.consumer.fetcher import ConsumerRecord

    from worker.settings.schema import KafkaSettings

_POLL_RECORDS: Final = 500
_POLL_SECONDS: Final = 0.2
# Letters have headers of ours, and may be of a time when their events could have more.
_MORE_HEADER_BYTES: Final = 2**20
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class DeadLetterTopic:
    """The dead-letter topic, from its first record to where it ended when it was opened.

    The end comes before the first record of a transaction that is open, if there is one.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        """Ask the brokers where the topic begins and ends.

        Raises:
            ConfigurationError: it does not exist.
            KafkaError: the brokers do not answer, or refuse.

        """
        self.name = settings.dead_letter_topic
        self._settings = settings
        self._timeout = settings.deadline_seconds
        self._consumer = new_consumer(
            settings, _MORE_HEADER_BYTES, group_id=None, max_poll_records=_POLL_RECORDS
        )
        try:
            self.begin = self._offsets(self._consumer.beginning_offsets, self._numbers())
            self.ends = self._offsets(self._consumer.end_offsets, self.begin)
        except BaseException:
            self._consumer.close()
            raise

    def __enter__(self) -> Self:
        """Return the topic itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections to the brokers."""
        self._consumer.close()

    def partitions_of(self, topic: str) -> set[int]:
        """Return the numbers of the partitions of a topic, none where it does not exist."""
        return set(self._consumer.partitions_for_topic(topic) or ())

    def log_ends(self) -> dict[int, int]:
        """Return where the partitions end now, with the records of open transactions.

        Who reads up to there waits until these transactions have ended.

        Raises:
            KafkaError: the brokers do not answer.

        """
        consumer = new_consumer(self._settings, group_id=None, isolation_level="read_uncommitted")
        try:
            return self._offsets(consumer.end_offsets, self.begin)
        finally:
            consumer.close()

    def read(
        self, begin: Mapping[int, int], ends: Mapping[int, int]
    ) -> Iterator[list[ConsumerRecord]]:
        """Yield the committed records between offsets by partition, each partition in its order.

        Raises:
            WorkerError: nothing comes for too long.
            KafkaError: the brokers refuse, or the records are gone.

        """
        left = {TopicPartition(self.name, p) for p, end in ends.items() if begin[p] < end}
        self._consumer.assign(left)
        # Partitions that an earlier reading has paused stay paused.
        resume(self._consumer)
        for partition in left:
            self._consumer.seek(partition, begin[partition.partition])
        moved = time.monotonic()
        while left:
            records = self._poll(ends)
            if records:
                yield records
                moved = time.monotonic()
            done = {p for p in left if self._position(p) >= ends[p.partition]}
            left -= done
            if done:
                self._consumer.pause(*done)
                moved = time.monotonic()
            if time.monotonic() - moved > self._timeout:
                raise WorkerError(
                    f"nothing comes from the topic {self.name}: the brokers do not answer, or a "
                    "transaction stays open there",
                    "try again",
                )

    def _poll(self, ends: Mapping[int, int]) -> list[ConsumerRecord]:
        polled = self._consumer.poll(timeout_ms=in_ms(_POLL_SECONDS))
        return [r for part in polled.values() for r in part if r.offset < ends[r.partition]]

    def _position(self, partition: TopicPartition) -> int:
        return int(self._consumer.position(partition, timeout_ms=in_ms(self._timeout)))

    def _numbers(self) -> set[int]:
        numbers = self.partitions_of(self.name)
        if not numbers:
            raise ConfigurationError(
                f"the topic {self.name} does not exist", "set kafka.dead_letter_topic"
            )
        return numbers

    def _offsets(self, ask: Any, numbers: Iterable[int]) -> dict[int, int]:  # noqa: ANN401 - kafka-python has no types
        partitions = [TopicPartition(self.name, number) for number in sorted(numbers)]
        offsets = ask(partitions, timeout_ms=in_ms(self._timeout))
        return {partition.partition: offset for partition, offset in offsets.items()}


def letter_of(record: ConsumerRecord) -> Letter | None:
    """Return the dead letter that a record is; None where this worker has not written it."""
    try:
        original = original_of(record)
        ours = own_headers(record.headers)
        place = TopicPlace(ours[TOPIC], int(ours[PARTITION]), int(ours[OFFSET]))
        rounds = own_headers(original.headers).get(ROUNDS, "")
        return Letter(
            place=place,
            kind=ours[KIND],
            reason=ours[REASON],
            value=original.value,
            key=original.key,
            headers=original.headers,
            time=_time_of(record),
            rounds=int(rounds) if rounds.isdecimal() else 0,
            omitted=original.omitted,
        )
    except (ValueError, KeyError, TypeError):
        return None


def is_receipt(record: ConsumerRecord) -> bool:
    """Return whether a record of the dead-letter topic is the receipt of a redrive."""
    names = {name for name, _ in record.headers}
    return REDRIVE in names and TOPIC not in names


def _time_of(record: ConsumerRecord) -> datetime | None:
    try:
        return _EPOCH + timedelta(milliseconds=record.timestamp)
    except OverflowError:
        return None
