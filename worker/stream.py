"""`worker run`: from Kafka to Kafka, one process of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from worker import pipeline
from worker.artifact import BUILT_IN_MODEL, load_artifact
from worker.codec import LabelEncoder, decode_text, json_decoder
from worker.runtime import fields_of, open_classifier
from worker.signals import StopSignal
from worker.telemetry.logs import log
from worker.transports.kafka.records import MessageEncoder
from worker.transports.kafka.transport import KafkaTransport, Limits
from worker.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.artifact import Artifact
    from worker.messages import Outcome
    from worker.settings import Settings
    from worker.transports.kafka.transport import KafkaChunk

_CLOSING_SECONDS = 1.0


def stream(settings: Settings) -> int:
    """Label events of the input topics until asked to stop; returns the exit code.

    Raises:
        ConfigurationError: settings that do not fit each other, or a file that cannot be used.
        WorkerError: the model cannot be used, a batch cannot be decoded, or offsets are no good.

    """
    artifact = load_artifact(settings.model or BUILT_IN_MODEL, settings.thresholds)
    transport = _transport(settings, artifact)
    classifier = open_classifier(settings, artifact)
    watchdog = Watchdog(settings.run.stuck_seconds, lambda: transport.in_hand)

    def stop_soon() -> None:
        ends = time.monotonic() + settings.run.stop_seconds
        transport.stop_by(ends)
        watchdog.stop_by(ends)

    def turned(chunk: KafkaChunk, outcomes: Sequence[Outcome]) -> None:
        pass

    def stopping() -> bool:
        watchdog.beat()
        return stop.received is not None

    with watchdog, StopSignal(stop_soon) as stop:
        try:
            pipeline.run(transport, classifier, completed=turned, stopping=stopping)
        finally:
            transport.close(_CLOSING_SECONDS)
            classifier.close()
    log.info("stopped")
    return 0


def _transport(settings: Settings, artifact: Artifact) -> KafkaTransport:
    kafka = settings.kafka
    fields = fields_of(settings.input)
    labels = LabelEncoder(
        artifact.manifest.name, artifact.digest, include_text=settings.include_text
    )
    encoder = MessageEncoder(
        labels,
        kafka.output_topic,
        kafka.dead_letter_topic,
        kafka.group,
        pass_key=kafka.pass_key,
        pass_headers=kafka.pass_headers,
    )
    decode = json_decoder(fields) if kafka.format == "json" else decode_text
    limits = Limits(settings.input.max_bytes, settings.run.stuck_seconds)
    return KafkaTransport(kafka, decode, encoder, limits)
