"""Turns Kafka's records into ours and back, and defines labels and dead letters on their topics.

Labels carry the key, headers and timestamp of their event, then our own headers, last:

    worker-topic, worker-partition, worker-offset    where the event was: drop duplicates by it
    worker-model                                     the digest of model and thresholds
    worker-group                                     the consumer group that labelled it
    worker-timestamp                                 only where the broker refused the event's own

Dead letters carry the event's value, key and headers as they were, then `worker-topic`,
`worker-partition`, `worker-offset`, `worker-timestamp`, `worker-kind` and `worker-reason`; those that
`worker dead-letters skip` leaves of what cannot be decoded have no timestamp. What
the client cannot send is written as empty bytes, and `worker-nulls` names what was null: it is a
JSON list of "value" and of the positions of headers, from 0. `original_of` reads all that back.

`worker dead-letters redrive` sends back the event as it was, with the header `worker-rounds`. On
the dead-letter topic it leaves records with the header `worker-redrive`, which are no dead letters.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from worker.events.records import DeadLetter, ErrorKind, LabelledEvent, Record, TopicPlace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kafka.consumer.fetcher import ConsumerRecord

    from worker.events.encoding import LabelEncoder

Headers: TypeAlias = "list[tuple[str, bytes]]"

PREFIX: Final = "worker-"
TOPIC: Final = "worker-topic"
PARTITION: Final = "worker-partition"
OFFSET: Final = "worker-offset"
TIMESTAMP: Final = "worker-timestamp"
MODEL: Final = "worker-model"
GROUP: Final = "worker-group"
KIND: Final = "worker-kind"
REASON: Final = "worker-reason"
NULLS: Final = "worker-nulls"
ROUNDS: Final = "worker-rounds"
REDRIVE: Final = "worker-redrive"


class ProducerRecord(NamedTuple):
    """A record that is to be published, and its topic."""

    topic: str
    value: bytes
    key: bytes | None
    headers: Headers
    timestamp: int | None
    """The time in milliseconds since the epoch; None stands for the time of sending."""

    def with_timestamp_as_header(self) -> ProducerRecord:
        """Return the record for a broker that does not take its timestamp."""
        header = (TIMESTAMP, str(self.timestamp).encode())
        return self._replace(headers=[*self.headers, header], timestamp=None)


@dataclass(frozen=True, slots=True)
class Original:
    """An event as it was before it became a dead letter."""

    topic: str
    value: bytes | None
    key: bytes | None
    headers: list[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class ProducerRecordEncoder:
    """Encodes labelled events and dead letters as records to publish."""

    labels: LabelEncoder
    output_topic: str
    dead_letter_topic: str
    group: str
    pass_key: bool = True
    pass_headers: bool = True

    def encode(self, source: ConsumerRecord, outcome: LabelledEvent | DeadLetter) -> ProducerRecord:
        """Return the record that the outcome of an event becomes."""
        if isinstance(outcome, DeadLetter):
            return self._dead_letter(source, outcome)
        headers = [(k, v or b"") for k, v in source.headers] if self.pass_headers else []
        headers += _place(source)
        headers += _same_for_all(self.labels.digest, self.group)
        key = source.key if self.pass_key else None
        value = self.labels.encode(outcome)
        return ProducerRecord(self.output_topic, value, key, headers, source.timestamp)

    def refused(self, source: ConsumerRecord) -> ProducerRecord:
        """Return the dead letter of an event whose label the brokers do not take."""
        reason = "the brokers do not take the label of this record"
        return self._dead_letter(source, DeadLetter(record_of(source), ErrorKind.REFUSED, reason))

    def _dead_letter(self, source: ConsumerRecord, letter: DeadLetter) -> ProducerRecord:
        headers = [(name, value or b"") for name, value in source.headers]
        headers += _place(source)
        headers.append((TIMESTAMP, str(source.timestamp).encode()))
        headers.append((KIND, letter.kind.encode()))
        headers.append((REASON, letter.reason.encode()))
        nulls: list[str | int] = ["value"] if source.value is None else []
        nulls += [index for index, (_, value) in enumerate(source.headers) if value is None]
        if nulls:
            headers.append((NULLS, json.dumps(nulls).encode()))
        return ProducerRecord(
            self.dead_letter_topic, source.value or b"", source.key, headers, None
        )


def record_of(source: ConsumerRecord) -> Record:
    """Return the record that the codec decodes; a null value is empty there."""
    place = TopicPlace(source.topic, source.partition, source.offset)
    return Record(source.value or b"", place)


def own_headers(headers: Sequence[tuple[str, bytes | None]]) -> Mapping[str, str]:
    """Return the headers that this worker added, by name; of a name that repeats, the last."""
    return {
        name: (value or b"").decode("utf-8", "replace")
        for name, value in headers
        if name.startswith(PREFIX)
    }


def original_of(letter: ConsumerRecord) -> Original:
    """Return the event that became a dead letter, equal to the byte.

    Raises:
        ValueError: the record is no dead letter of ours.

    """
    headers = list(letter.headers)
    names = [name for name, _ in headers]
    if TOPIC not in names:
        raise ValueError("not a dead letter of this worker")
    # Ours come last. An event that was itself a label or a dead letter has such headers, too.
    first = len(names) - 1 - names[::-1].index(TOPIC)
    ours = own_headers(headers[first:])
    nulls = json.loads(ours.get(NULLS, "[]"))
    return Original(
        topic=ours[TOPIC],
        value=None if "value" in nulls else letter.value,
        key=letter.key,
        headers=[
            (name, None if index in nulls else value)
            for index, (name, value) in enumerate(headers[:first])
        ],
    )


@lru_cache(maxsize=1)
def _same_for_all(digest: str, group: str) -> Headers:
    return [(MODEL, digest.encode()), (GROUP, group.encode())]


def _place(source: ConsumerRecord) -> Headers:
    return [*_same_for_partition(source.topic, source.partition), (OFFSET, b"%d" % source.offset)]


@lru_cache(maxsize=1024)
def _same_for_partition(topic: str, partition: int) -> Headers:
    return [(TOPIC, topic.encode()), (PARTITION, b"%d" % partition)]
