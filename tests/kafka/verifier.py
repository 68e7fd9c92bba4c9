"""Tells what the workers of a group have done wrong, from the topics alone.

Truth is the input topic, read back, and what the worker's own code makes of its records when they
are replayed here. An outcome, which is a label or a dead letter, belongs to the event that its
headers name. What is found is told by places, without texts.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, TypeAlias

from worker import pipeline
from worker.events.decoding import Fields, json_decoder
from worker.events.encoding import LabelEncoder
from worker.events.records import ErrorKind, Skipped, TopicPlace
from worker.settings.schema import Settings
from worker.transports.kafka.records import (
    KIND,
    OFFSET,
    PARTITION,
    TOPIC,
    ProducerRecordEncoder,
    own_headers,
)
from worker.transports.kafka.transport import item_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kafka.consumer.fetcher import ConsumerRecord

    from tests.kafka.stage import Stage
    from worker.inference.classifier import Classifier
    from worker.transports.kafka.records import ProducerRecord

    # What must come out for each record of the input: nothing, for a tombstone.
    Truth: TypeAlias = Mapping[TopicPlace, "ProducerRecord | None"]

PLACES_SHOWN = 5


@dataclass(frozen=True)
class Report:
    """How many records the input has, and the places of those for which something is wrong.

    `duplicated` has a place for each outcome too many. `unexpected` are outcomes of tombstones or
    of the wrong kind, and those of no event, by their own place. `given_up` are good events that
    became dead letters because processes had died over them: right, if some have.
    """

    messages: int
    lost: list[TopicPlace] = field(default_factory=list)
    duplicated: list[TopicPlace] = field(default_factory=list)
    out_of_order: list[TopicPlace] = field(default_factory=list)
    mislabelled: list[TopicPlace] = field(default_factory=list)
    unexpected: list[TopicPlace] = field(default_factory=list)
    given_up: list[TopicPlace] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        found = {each.name: len(getattr(self, each.name)) for each in fields(self)[1:]}
        return {"messages": self.messages} | found

    def __str__(self) -> str:
        lines = [f"{'messages':<14}{self.messages:>8}"]
        for each in fields(self)[1:]:
            places = getattr(self, each.name)
            shown = [*map(str, places[:PLACES_SHOWN]), *["..."][: len(places) // PLACES_SHOWN]]
            lines.append(f"{each.name:<14}{len(places):>8}  {' '.join(shown)}".rstrip())
        return "\n".join(lines)


def verify(stage: Stage, classifier: Classifier) -> Report:
    """Compare what the workers of a stage have written with what they had to read."""
    artifact = classifier.artifact
    labels = LabelEncoder(artifact.manifest.name, artifact.digest)
    encoder = ProducerRecordEncoder(labels, stage.output, stage.dead, stage.group, max_bytes=2**20)
    truth = replay(stage.kafka.read(stage.input), classifier, encoder)
    return compare(truth, stage.labels(), stage.dead_letters())


def replay(
    sources: Sequence[ConsumerRecord], classifier: Classifier, encoder: ProducerRecordEncoder
) -> Truth:
    """Return what must come out for each record, by its place."""
    settings = Settings()
    decode = json_decoder(Fields())
    items = [
        item_of(decode, settings.input.max_bytes, settings.kafka, source) for source in sources
    ]
    return {
        own_place(source): None if isinstance(outcome, Skipped) else encoder.encode(source, outcome)
        for source, outcome in zip(sources, pipeline.label(classifier, items), strict=True)
    }


def compare(
    truth: Truth, labels: Sequence[ConsumerRecord], dead_letters: Sequence[ConsumerRecord]
) -> Report:
    """Compare what came out, each partition in its order, with what must."""
    seen: set[TopicPlace] = set()
    found: dict[str, list[TopicPlace]] = {each.name: [] for each in fields(Report)[1:]}
    for record in (*labels, *dead_letters):
        place = source_place(record)
        if place is None or place not in truth:
            found["unexpected"].append(own_place(record))
            continue
        expected = truth[place]
        if expected is None:
            found["unexpected"].append(place)
            continue
        if place in seen:
            found["duplicated"].append(place)
        seen.add(place)
        if record.topic != expected.topic:
            given_up = own_headers(record.headers).get(KIND) == ErrorKind.DEADLY
            found["given_up" if given_up else "unexpected"].append(place)
        elif not _same(record, expected):
            found["mislabelled"].append(place)
    found["lost"] = [place for place, message in truth.items() if message and place not in seen]
    found["out_of_order"] = _out_of_order(labels)
    return Report(len(truth), **found)


def own_place(record: ConsumerRecord) -> TopicPlace:
    return TopicPlace(record.topic, record.partition, record.offset)


def source_place(record: ConsumerRecord) -> TopicPlace | None:
    """Return the place of the event that an outcome belongs to, if it names one."""
    headers = own_headers(record.headers)
    try:
        return TopicPlace(headers[TOPIC], int(headers[PARTITION]), int(headers[OFFSET]))
    except (KeyError, ValueError):
        return None


def _same(record: ConsumerRecord, expected: ProducerRecord) -> bool:
    """Tell whether an outcome is what must come out, to the byte."""
    return (
        record.value == expected.value
        and record.key == expected.key
        and list(record.headers) == expected.headers
        and expected.timestamp in (record.timestamp, None)
    )


def _out_of_order(labels: Sequence[ConsumerRecord]) -> list[TopicPlace]:
    """Return the places whose first label comes after one of a later event of the same key."""
    seen: set[TopicPlace] = set()
    last: dict[tuple[str, int, bytes], int] = {}
    late = []
    for label in labels:
        place = source_place(label)
        if place is None or place in seen or label.key is None:
            continue
        seen.add(place)
        line = (place.topic, place.partition, label.key)
        if place.offset < last.get(line, 0):
            late.append(place)
        last[line] = max(place.offset, last.get(line, 0))
    return late
