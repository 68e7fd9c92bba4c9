"""`worker run`, one process of it: from Kafka to Kafka."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from worker import pipeline
from worker.assembly import fields_of, open_classifier
from worker.events.decoding import decode_text, json_decoder
from worker.events.encoding import LabelEncoder
from worker.inference.artifact import BUILT_IN_MODEL, load_artifact
from worker.logs.logger import log
from worker.logs.stacks import redacted_errors
from worker.run.watchdog import Watchdog
from worker.telemetry.metrics import Metrics, Status
from worker.telemetry.server import serving
from worker.terminal.signals import StopSignal
from worker.transports.kafka.records import ProducerRecordEncoder
from worker.transports.kafka.transport import KafkaTransport, TransportLimits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.events.records import Outcome
    from worker.inference.artifact import Artifact
    from worker.run.link import Link
    from worker.settings.schema import Settings
    from worker.transports.kafka.transport import KafkaChunk

_CLOSING_SECONDS: Final = 1.0
_LIVE_SECONDS: Final = 60.0


def stream(settings: Settings, link: Link | None = None) -> int:
    """Label events of the input topics until asked to stop; returns the exit code.

    `link` leads to the process that started this one as one of several, and speaks for it.

    Raises:
        ConfigurationError: settings that do not fit each other, or a file that cannot be used.
        EngineError: the model fails on a known good text.
        WorkerError: the model cannot be used, a batch cannot be decoded, offsets are no good, or
            something happened that should not.

    """
    artifact = load_artifact(settings.model or BUILT_IN_MODEL, settings.thresholds)
    process = link.process if link else 0
    transport = _transport(settings, artifact, process)
    metrics = Metrics(artifact.manifest.name, artifact.digest, artifact.manifest.labels)
    live_seconds = min(
        max(_LIVE_SECONDS, 2 * settings.kafka.deadline_seconds), settings.run.stuck_seconds
    )
    watchdog = Watchdog(settings.run.stuck_seconds, lambda: transport.in_hand)

    def status() -> Status:
        state = transport.report
        return Status(
            process=process,
            live=watchdog.age < live_seconds,
            ready=state.joined and state.problem is None,
            problem=state.problem,
            metrics=metrics.snapshot(),
        )

    def stop_soon() -> None:
        ends = time.monotonic() + settings.run.stop_seconds
        transport.stop_by(ends)
        watchdog.stop_by(ends)

    def completed(chunk: KafkaChunk, outcomes: Sequence[Outcome]) -> None:
        stamps = [source.timestamp for source in chunk.sources]
        metrics.chunk_completed(outcomes, stamps, time.time())

    def stopping() -> bool:
        watchdog.beat()
        metrics.update(classifier.counts, transport.report)
        return stop.received is not None

    with ExitStack() as stack:
        stop = stack.enter_context(StopSignal(stop_soon))
        stack.enter_context(watchdog)
        classifier = open_classifier(settings, artifact)
        stack.callback(classifier.close)
        # A model that fails takes no partition; the first message finds the engine warm.
        classifier.check()
        if link:
            stack.enter_context(link.telling(status))
        else:
            stack.enter_context(serving(settings.run.listen, lambda: [status()]))
        stack.callback(transport.close, _CLOSING_SECONDS)
        stack.enter_context(redacted_errors())
        pipeline.run(transport, classifier, completed=completed, stopping=stopping)
    log.info("stopped", uncommitted=transport.in_hand)
    return int(transport.in_hand)


def _transport(settings: Settings, artifact: Artifact, process: int) -> KafkaTransport:
    kafka = settings.kafka
    if settings.run.processes > 1:
        own_id = kafka.transactional_id and f"{kafka.transactional_id}-{process}"
        ids = {"client_id": f"{kafka.client_id}-{process}", "transactional_id": own_id}
        kafka = kafka.model_copy(update=ids)
    fields = fields_of(settings.input)
    labels = LabelEncoder(
        artifact.manifest.name, artifact.digest, include_text=settings.include_text
    )
    encoder = ProducerRecordEncoder(
        labels,
        kafka.output_topic,
        kafka.dead_letter_topic,
        kafka.group,
        pass_key=kafka.pass_key,
        pass_headers=kafka.pass_headers,
    )
    decode = json_decoder(fields) if kafka.format == "json" else decode_text
    limits = TransportLimits(settings.input.max_bytes, settings.run.stuck_seconds)
    return KafkaTransport(kafka, decode, encoder, limits)
