"""Turns Kafka's records into ours and back, and defines labels and dead letters on their topics.

Labels carry the key, headers and timestamp of their event, then our own headers, last:

    worker-topic, worker-partition, worker-offset    where the event was: drop duplicates by it
    worker-model                                     the digest of model and thresholds
    worker-group                                     the consumer group that labelled it
    worker-timestamp                                 only where the label cannot have the event's own

Headers of the event that are named like ours, `worker-`, do not pass into its label.

Dead letters carry the event's value, key and headers as they were, then `worker-topic`,
`worker-partition`, `worker-offset`, `worker-timestamp`, `worker-kind` and `worker-reason`. A null value
is written as empty bytes, because null ones mean a deletion to Kafka, and `worker-nulls` is
`["value"]`. Where that is more than their topic takes, they carry nothing of the event, and
`worker-omitted` says what that was: a JSON object of the bytes of `value`, `key` and `headers`, null
where there was none, and of the `sha256` of the value. `original_of` reads all that back.

The dead letter of records that cannot be decoded has `worker-last-offset` instead of a timestamp, and
as its value the bytes of the whole record batch.

`worker dead-letters redrive` sends back the event as it was, with the header `worker-rounds`. On
the dead-letter topic it leaves records with the header `worker-redrive`, which are no dead letters.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, TypeVar

from worker.events.records import DeadLetter, ErrorKind, LabelledEvent, Record, TopicPlace
from worker.transports.kafka.record_batches import Undecodable, encode_content

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kafka.consumer.fetcher import ConsumerRecord

    from worker.events.encoding import LabelEncoder

Headers: TypeAlias = "list[tuple[str, bytes | None]]"

PREFIX: Final = "worker-"
TOPIC: Final = "worker-topic"
PARTITION: Final = "worker-partition"
OFFSET: Final = "worker-offset"
LAST_OFFSET: Final = "worker-last-offset"
TIMESTAMP: Final = "worker-timestamp"
MODEL: Final = "worker-model"
GROUP: Final = "worker-group"
KIND: Final = "worker-kind"
REASON: Final = "worker-reason"
NULLS: Final = "worker-nulls"
OMITTED: Final = "worker-omitted"
ROUNDS: Final = "worker-rounds"
REDRIVE: Final = "worker-redrive"

# Dead letters of these carry nothing of their event.
_TOO_LARGE_TO_CARRY: Final = {ErrorKind.KEY_TOO_LARGE, ErrorKind.HEADERS_TOO_LARGE}
# More than our own headers come to, unless names are very long.
_OWN_HEADERS_BYTES: Final = 2048

_T = TypeVar("_T")


class ProducerRecord(NamedTuple):
    """A record that is to be published, and its topic."""

    topic: str
    value: bytes | None
    key: bytes | None
    headers: Headers
    timestamp: int | None = None
    """The time in milliseconds since the epoch; None stands for the time of sending."""
    partition: int | None = None
    """Where it goes; None leaves that to the key."""

    def content(self) -> bytes:
        """Return key, value and headers as the message format has them."""
        return encode_content(self.key, self.value, self.headers)

    def with_timestamp_as_header(self) -> ProducerRecord:
        """Return the record for a broker that does not take its timestamp."""
        header = (TIMESTAMP, str(self.timestamp).encode())
        return self._replace(headers=[*self.headers, header], timestamp=None)


@dataclass(frozen=True, slots=True)
class Omitted:
    """What a dead letter does not carry of its event: sizes in bytes, None where there was nothing."""

    value: int | None
    key: int | None
    headers: int
    sha256: str | None
    """Of the value."""


@dataclass(frozen=True, slots=True)
class Original:
    """An event as it was before it became a dead letter, or what is known of it."""

    topic: str
    value: bytes | None
    key: bytes | None
    headers: Headers
    omitted: Omitted | None = None


@dataclass(frozen=True, slots=True)
class ProducerRecordEncoder:
    """Encodes labelled events and dead letters as records to publish.

    `max_bytes` is the largest record that may be sent; a topic that takes less is found out.
    """

    labels: LabelEncoder
    output_topic: str
    dead_letter_topic: str
    group: str
    max_bytes: int
    pass_key: bool = True
    pass_headers: bool = True
    _largest: dict[str, int] = field(default_factory=dict)

    def encode(self, source: ConsumerRecord, outcome: LabelledEvent | DeadLetter) -> ProducerRecord:
        """Return the record that the outcome of an event becomes."""
        if isinstance(outcome, DeadLetter):
            return self._dead_letter(source, outcome)
        label = self._label(source, outcome)
        return label if self._fits(source, label) else self._refused(source)

    def replacement(
        self, source: ConsumerRecord, message: ProducerRecord, *, too_large: bool
    ) -> ProducerRecord | None:
        """Return what takes the place of a record that the brokers do not take, if anything can.

        With `too_large`, no record of this size will be encoded for its topic again.
        """
        if too_large:
            self._largest[message.topic] = len(message.content()) - 1
        if message.topic != self.dead_letter_topic:
            return self._refused(source)
        return None if _is_short(message) else shortened(source, message)

    def _label(self, source: ConsumerRecord, labelled: LabelledEvent) -> ProducerRecord:
        headers: Headers = []
        if self.pass_headers:
            headers = [header for header in source.headers if not header[0].startswith(PREFIX)]
        headers += _place(source)
        headers += _same_for_all(self.labels.digest, self.group)
        key = source.key if self.pass_key else None
        value = self.labels.encode(labelled)
        label = ProducerRecord(self.output_topic, value, key, headers, source.timestamp)
        # Brokers take what no clock shows, and the client cannot write it.
        return label.with_timestamp_as_header() if source.timestamp < 0 else label

    def _refused(self, source: ConsumerRecord) -> ProducerRecord:
        reason = "the brokers do not take the label of this record"
        return self._dead_letter(source, DeadLetter(record_of(source), ErrorKind.REFUSED, reason))

    def _dead_letter(self, source: ConsumerRecord, letter: DeadLetter) -> ProducerRecord:
        message = dead_letter(source, letter, self.dead_letter_topic)
        if letter.kind in _TOO_LARGE_TO_CARRY or not self._fits(source, message):
            return shortened(source, message)
        return message

    def _fits(self, source: ConsumerRecord, message: ProducerRecord) -> bool:
        largest = self._largest.get(message.topic, self.max_bytes)
        of_event = len(message.key or b"") + source.serialized_header_size
        most = len(message.value or b"") + of_event + _OWN_HEADERS_BYTES
        return most <= largest or len(message.content()) <= largest


def dead_letter(source: ConsumerRecord, letter: DeadLetter, topic: str) -> ProducerRecord:
    """Return the record that carries a dead letter, whole, to its topic."""
    headers = [*source.headers, *_place(source)]
    if isinstance(source, Undecodable):
        headers.append((LAST_OFFSET, b"%d" % source.last_offset))
    else:
        headers.append((TIMESTAMP, b"%d" % source.timestamp))
    headers.append((KIND, letter.kind.encode()))
    headers.append((REASON, letter.reason.encode()))
    if source.value is None:
        headers.append((NULLS, b'["value"]'))
    return ProducerRecord(topic, source.value or b"", source.key, headers)


def sha256_of(value: bytes | None) -> str | None:
    """Return the digest by which an event is known that its dead letter does not carry."""
    return None if value is None else hashlib.sha256(value).hexdigest()


def shortened(source: ConsumerRecord, letter: ProducerRecord) -> ProducerRecord:
    """Return a dead letter that carries nothing of its event."""
    value, key = source.value, source.key
    omitted = Omitted(
        value=None if value is None else len(value),
        key=None if key is None else len(key),
        headers=source.serialized_header_size,
        sha256=sha256_of(value),
    )
    ours = letter.headers[len(source.headers) :]
    header = (OMITTED, json.dumps(asdict(omitted)).encode())
    return letter._replace(value=b"", key=None, headers=[*ours, header])


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
    # Headers that were null were in this list, too, when they could not be written as they are.
    nulls = set(_json_of(list, ours.get(NULLS, "[]")))
    return Original(
        topic=ours[TOPIC],
        value=None if "value" in nulls else letter.value,
        key=letter.key,
        headers=[
            (name, None if index in nulls else value)
            for index, (name, value) in enumerate(headers[:first])
        ],
        omitted=_omitted(ours[OMITTED]) if OMITTED in ours else None,
    )


def _omitted(text: str) -> Omitted:
    omitted = Omitted(**_json_of(dict, text))
    sizes = {type(size) for size in (omitted.value, omitted.key, omitted.headers)}
    if not sizes <= {int, NoneType} or type(omitted.sha256) not in {str, NoneType}:
        raise TypeError
    return omitted


def _json_of(kind: type[_T], text: str) -> _T:
    content: Any
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("a header is nested too deeply") from None
    if not isinstance(content, kind):
        raise TypeError
    return content


def _is_short(letter: ProducerRecord) -> bool:
    return letter.headers[-1][0] == OMITTED


@lru_cache(maxsize=1)
def _same_for_all(digest: str, group: str) -> Headers:
    return [(MODEL, digest.encode()), (GROUP, group.encode())]


def _place(source: ConsumerRecord) -> Headers:
    return [*_same_for_partition(source.topic, source.partition), (OFFSET, b"%d" % source.offset)]


@lru_cache(maxsize=1024)
def _same_for_partition(topic: str, partition: int) -> Headers:
    return [(TOPIC, topic.encode()), (PARTITION, b"%d" % partition)]
