"""One process of `worker run`: it labels events from Kafka, and publishes the labels to Kafka."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Final

from worker import pipeline
from worker.assembly import collect_garbage_rarely, fields_of, load_model, open_classifier
from worker.errors import EngineError
from worker.events.decoding import decode_text, json_decoder
from worker.events.encoding import LabelEncoder
from worker.logs.logger import log
from worker.logs.stacks import redacted_errors
from worker.run.unreadable import UnreadableRecords
from worker.run.watchdog import Watchdog
from worker.telemetry.metrics import Metrics, Status
from worker.telemetry.server import serving
from worker.terminal.signals import StopSignal
from worker.transports.kafka.clients import risks
from worker.transports.kafka.records import ProducerRecordEncoder
from worker.transports.kafka.transport import KafkaTransport, TransportLimits

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from worker.events.records import Outcome
    from worker.inference.artifact import Artifact
    from worker.inference.classifier import Classifier
    from worker.run.parent import ParentConnection
    from worker.settings.schema import Settings
    from worker.transports.kafka.transport import KafkaChunk

_CLOSING_SECONDS: Final = 1.0
_LIVE_SECONDS: Final = 60.0


class ConsumerProcess:
    """One process of `worker run`, from the load of its model until it is asked to stop."""

    def __init__(self, settings: Settings, parent: ParentConnection | None = None) -> None:
        """Read the model's folder; nothing is connected and no signal is taken over yet.

        `parent` leads to the process that started this one as one of several, and answers for it
        over HTTP. Without a parent this process answers for itself.

        Raises:
            ConfigurationError: settings do not fit each other, or the model.
            WorkerError: the model folder cannot be used.

        """
        self._settings = settings
        self._parent = parent
        self._number = parent.child_number if parent else 0
        self._artifact = load_model(settings)
        manifest = self._artifact.manifest
        self._metrics = Metrics(manifest.name, self._artifact.digest, manifest.labels)
        self._transport = _transport(settings, self._artifact, self._number)
        self._stop_signal = StopSignal(self._limit_time_to_stop)
        self._watchdog = Watchdog(
            settings.run.stuck_seconds, in_hand=lambda: self._transport.in_hand
        )

    def run(self) -> int:
        """Label events until asked to stop; returns the exit code, 1 if a chunk was left undone.

        Raises:
            ConfigurationError: a file that the settings name cannot be used.
            EngineError: the model fails on a known good text, or on most texts.
            WorkerError: the model cannot be used, a batch cannot be decoded, no record can be read,
                offsets are no good, or an error happened that nobody expected.

        """
        with ExitStack() as stack:
            stack.enter_context(self._stop_signal)
            stack.enter_context(self._watchdog)
            for risk in risks(self._settings.kafka):
                log.warning("others on the network could interfere", risk=risk)
            classifier = stack.enter_context(
                closing(open_classifier(self._settings, self._artifact))
            )
            # A process whose model fails takes no partition, and the first event finds the engine warm.
            classifier.check()
            collect_garbage_rarely()
            stack.enter_context(self._reporting())
            stack.callback(self._transport.close, _CLOSING_SECONDS)
            stack.enter_context(redacted_errors())
            self._label(classifier)
        log.info("stopped", uncommitted=self._transport.in_hand)
        return int(self._transport.in_hand)

    def _reporting(self) -> AbstractContextManager[object]:
        """Report how this process is: to its parent, or over HTTP where it has none."""
        if self._parent:
            return self._parent.reporting(self._status, self._stop_signal.request)
        run = self._settings.run
        return serving(run.listen, run.allowed_hosts, lambda: [self._status()])

    def _status(self) -> Status:
        """Return how this process is; called on other threads."""
        state = self._transport.report
        return Status(
            process=self._number,
            live=self._watchdog.age < _live_seconds(self._settings),
            ready=state.joined and state.problem is None,
            problem=state.problem,
            metrics=self._metrics.snapshot(),
        )

    def _label(self, classifier: Classifier) -> None:
        unreadable = UnreadableRecords(self._settings.kafka.max_unreadable)

        def completed(chunk: KafkaChunk, outcomes: Sequence[Outcome]) -> None:
            stamps = [source.timestamp for source in chunk.sources]
            self._metrics.chunk_completed(outcomes, stamps, time.time())
            unreadable.add(outcomes)

        def end_turn() -> bool:
            """Show that the loop has gone round; returns whether it ends here."""
            self._watchdog.beat()
            self._metrics.update(classifier.counts, self._transport.report)
            return self._stop_signal.received is not None

        try:
            pipeline.run(self._transport, classifier, completed=completed, stopping=end_turn)
        except EngineError:
            # Else its successors would find the messages deadly, one after the other.
            self._transport.absolve()
            raise

    def _limit_time_to_stop(self) -> None:
        """Limit the time that the chunk in hand may still take.

        This runs in the middle of anything: in a signal handler, or on the thread that follows the
        parent. So it reads nothing that others write, and each of the two calls only stores a time.
        """
        ends = time.monotonic() + self._settings.run.stop_seconds
        self._transport.stop_by(ends)
        self._watchdog.stop_by(ends)


def _live_seconds(settings: Settings) -> float:
    """Return how long a turn of the loop may take before the process is reported as not live.

    A turn may wait for brokers twice until their deadline; past `stuck_seconds` the watchdog ends
    the process anyway.
    """
    longest_turn = max(_LIVE_SECONDS, 2 * settings.kafka.deadline_seconds)
    return min(longest_turn, settings.run.stuck_seconds)


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
        kafka.max_message_bytes,
        pass_key=kafka.pass_key,
        pass_headers=kafka.pass_headers,
    )
    decode = json_decoder(fields) if kafka.format == "json" else decode_text
    limits = TransportLimits(settings.input.max_bytes, settings.run.stuck_seconds)
    return KafkaTransport(kafka, decode, encoder, limits)
