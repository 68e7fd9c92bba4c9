"""What a chunk costs from the bytes that were fetched to the bytes to send, without the brokers."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from kafka import TopicPartition
from kafka.record import MemoryRecordsBuilder

from worker import pipeline
from worker.events.decoding import Fields, json_decoder
from worker.events.encoding import LabelEncoder
from worker.events.records import DeadLetter, LabelledEvent
from worker.inference.classifier import Classifier
from worker.transports.kafka.batches import fill
from worker.transports.kafka.client_internals import ReadingLimits, read_record_batches
from worker.transports.kafka.records import ProducerRecord, ProducerRecordEncoder, record_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from worker.inference.artifact import Artifact

SIZES: Final = (1, 4, 16, 64, 256, 1024)
# A round takes so many messages in chunks of each size, at least.
_MESSAGES: Final = 64
_NO_COMPRESSION: Final = 0
_MAGIC: Final = 2
_ROOM: Final = 2**30
_EVENTS: Final = TopicPartition("events", 0)
_LIMITS: Final = ReadingLimits(batch_bytes=_ROOM, header_bytes=_ROOM)


class RecordBatchLabeller:
    """Does what a worker does between two brokers: it turns record batches of events into those of labels."""

    def __init__(self, artifact: Artifact) -> None:
        """Begin with an empty memory."""
        self._classifier = Classifier(artifact)
        self._decode = json_decoder(Fields())
        labels = LabelEncoder(artifact.manifest.name, artifact.digest)
        self._encoder = ProducerRecordEncoder(
            labels, "labels", "dead-letters", "worker", max_bytes=_ROOM
        )

    def label(self, events: bytes) -> bytes:
        """Return the labels of a record batch of events as a record batch."""
        sources = read_record_batches(_EVENTS, events, _LIMITS)
        items = [self._decode(record_of(source)) for source in sources]
        outcomes = pipeline.label(self._classifier, items)
        return _batch(
            [
                self._encoder.encode(source, outcome)
                for source, outcome in zip(sources, outcomes, strict=True)
                if isinstance(outcome, LabelledEvent | DeadLetter)
            ]
        )


def chunk_costs(artifact: Artifact, texts: Sequence[str]) -> Mapping[int, Sequence[float]]:
    """Return the seconds of chunks by their size, with a memory that knows the first half of texts."""
    labeller = RecordBatchLabeller(artifact)
    middle = len(texts) // 2
    for begin in range(0, middle, SIZES[-1]):
        labeller.label(events_of(texts[begin : min(middle, begin + SIZES[-1])]))
    costs: dict[int, list[float]] = defaultdict(list)
    for chunk in _chunks(texts[middle:]):
        events = events_of(chunk)
        begun = time.perf_counter()
        labeller.label(events)
        costs[len(chunk)].append(time.perf_counter() - begun)
    return costs


def _chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Cut texts into chunks of all sizes in turn, so that each sees every part of the chat."""
    begin = 0
    while begin < len(texts):
        for size in SIZES:
            for _ in range(max(1, _MESSAGES // size)):
                if begin + size > len(texts):
                    return
                yield texts[begin : begin + size]
                begin += size


def events_of(texts: Sequence[str]) -> bytes:
    """Return texts as a record batch of events."""
    return _batch(
        [
            ProducerRecord(
                "events", json.dumps({"id": f"m-{number}", "text": text}).encode(), b"u", [], 0
            )
            for number, text in enumerate(texts)
        ]
    )


def _batch(messages: Sequence[ProducerRecord]) -> bytes:
    builder = MemoryRecordsBuilder(_MAGIC, _NO_COMPRESSION, _ROOM)
    fill(builder, [(message.timestamp or 0, message.content()) for message in messages], _ROOM)
    builder.close()
    return bytes(builder.buffer())
