"""Where a group begins, and where it goes on when its position is no good."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, TypeAlias

from kafka import TopicPartition
from kafka import errors as kafka_errors

from worker.errors import WorkerError
from worker.logs.logger import log
from worker.transports.kafka.client_internals import read_committed
from worker.transports.kafka.clients import new_consumer
from worker.transports.kafka.durations import in_ms
from worker.transports.kafka.marks import Mark
from worker.transports.kafka.records import GROUP, own_headers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from kafka import KafkaConsumer
    from kafka.structs import OffsetAndMetadata

    from worker.settings.schema import KafkaSettings

    Commit: TypeAlias = Callable[[Mapping[TopicPartition, OffsetAndMetadata]], None]

# So many labels at the end of each output partition are searched for those of a group, which shows
# that it has labelled before.
_LAST_LABELS: Final = 100


def establish_starts(
    consumer: KafkaConsumer, settings: KafkaSettings, commit: Commit, timeout: float
) -> bool:
    """Commit a first position for assigned partitions that have none.

    A new group begins in all partitions at once, where the settings say: the worker that holds the
    first partition commits for all, and for the other workers this returns False until it has. In a
    group that has commits, a partition without one was added later, and begins at its earliest
    record. The timeout is in seconds, for each call of the brokers.

    Raises:
        WorkerError: the group is known, but its commits are gone.
        KafkaError: the brokers do not answer.

    """
    topics = {topic: len(consumer.partitions_for_topic(topic)) for topic in settings.input_topics}
    known = {TopicPartition(t, p) for t, count in topics.items() for p in range(count)}
    everything = sorted(known | consumer.assignment())
    committed = read_committed(consumer, everything, timeout)
    missing = [partition for partition in everything if committed[partition] is None]
    if len(missing) == len(everything):
        if everything[0] not in consumer.assignment():
            return False
        _refuse_known_group(settings, timeout)
        ends = consumer.beginning_offsets if settings.start == "earliest" else consumer.end_offsets
        begin = ends(everything, timeout_ms=in_ms(timeout))
        starts = {p: Mark(topics[p.topic]).at(offset) for p, offset in begin.items()}
        commit(starts)
        log.info("group begins", group=settings.group, start=settings.start)
        return True
    ours = [partition for partition in missing if partition in consumer.assignment()]
    if not ours:
        return True
    starts = _added_later(consumer, ours, committed, settings, timeout)
    commit(starts)
    for partition in starts:
        log.info("new partition", topic=partition.topic, partition=partition.partition)
    return True


def _added_later(
    consumer: KafkaConsumer,
    missing: Sequence[TopicPartition],
    committed: Mapping[TopicPartition, OffsetAndMetadata | None],
    settings: KafkaSettings,
    timeout: float,
) -> dict[TopicPartition, OffsetAndMetadata]:
    began_with: dict[str, int] = {}
    for partition, commit in committed.items():
        if commit is not None:
            count = Mark.read(commit.metadata).partitions
            began_with[partition.topic] = max(count, began_with.get(partition.topic, 0))
    for partition in missing:
        if partition.partition < began_with.get(partition.topic, 0):
            raise _gone(settings, f"partition {partition.partition} of {partition.topic}")
    begin = consumer.beginning_offsets(missing, timeout_ms=in_ms(timeout))
    return {p: Mark(began_with.get(p.topic, 0)).at(offset) for p, offset in begin.items()}


def _refuse_known_group(settings: KafkaSettings, timeout: float) -> None:
    """Refuse a group without commits that has labelled before, since its commits have expired.

    Raises:
        WorkerError: some of the last labels on the output topic are of this group.
        KafkaError: the brokers do not answer in time.

    """
    ends_at = time.monotonic() + timeout
    reader = new_consumer(settings, group_id=None, max_poll_records=_LAST_LABELS)
    try:
        count = len(reader.partitions_for_topic(settings.output_topic))
        if not count:
            return
        partitions = [TopicPartition(settings.output_topic, number) for number in range(count)]
        reader.assign(partitions)
        begin, end = reader.beginning_offsets(partitions), reader.end_offsets(partitions)
        for partition in partitions:
            reader.seek(partition, max(begin[partition], end[partition] - _LAST_LABELS))
        while any(reader.position(p) < end[p] for p in partitions):
            if time.monotonic() > ends_at:
                raise kafka_errors.KafkaTimeoutError
            for records in reader.poll(timeout_ms=200).values():
                if any(own_headers(r.headers).get(GROUP) == settings.group for r in records):
                    raise _gone(settings, "all partitions")
    finally:
        reader.close()


def seek_into_range(
    consumer: KafkaConsumer,
    offsets: Mapping[TopicPartition, int],
    commit: Commit,
    timeout: float,
) -> int:
    """Go on from the earliest record where retention has deleted those at the offsets.

    Returns how many records are lost.

    Raises:
        WorkerError: an offset is beyond the end of its partition.
        KafkaError: the brokers do not answer.

    """
    begin = consumer.beginning_offsets(list(offsets), timeout_ms=in_ms(timeout))
    for partition, offset in offsets.items():
        where = f"partition {partition.partition} of {partition.topic}"
        if offset > begin[partition]:
            raise lost_offsets(
                f"the committed offset {offset} is beyond the end of {where}: it was made anew or "
                "has lost records"
            )
    # The gap is logged after the commit, so that no other worker comes to it and logs it again.
    before = read_committed(consumer, offsets, timeout)
    marks = {p: Mark.read(commit.metadata if commit else None) for p, commit in before.items()}
    commit({p: mark.passed(begin[p]).at(begin[p]) for p, mark in marks.items()})
    for partition, offset in offsets.items():
        consumer.seek(partition, begin[partition])
        log.error(
            "records lost to retention",
            topic=partition.topic,
            partition=partition.partition,
            offset=offset,
            records=begin[partition] - offset,
        )
    return sum(begin[partition] - offset for partition, offset in offsets.items())


def lost_offsets(problem: str) -> WorkerError:
    """Return the error for a group whose offsets cannot be used."""
    return WorkerError(
        problem,
        "set the group's offsets with kafka-consumer-groups --reset-offsets, then start the "
        "worker again",
    )


def _gone(settings: KafkaSettings, what: str) -> WorkerError:
    return lost_offsets(
        f"the group {settings.group} has worked before, but its offsets for {what} are gone, "
        "expired or deleted"
    )
