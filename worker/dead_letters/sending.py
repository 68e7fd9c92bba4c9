"""Sends records back to their topics, with the receipts for them in the same transaction."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from kafka import errors as kafka_errors

from worker.errors import WorkerError
from worker.transports.kafka.client_internals import (
    NullSerializer,
    begin_abort,
    begin_commit,
    close_by_force,
    last_error,
    send_with_nulls,
)
from worker.transports.kafka.clients import new_producer, sentence
from worker.transports.kafka.deadline import Deadline
from worker.transports.kafka.durations import in_ms
from worker.transports.kafka.publishers import await_result, flushed
from worker.transports.kafka.records import REDRIVE, ROUNDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from worker.dead_letters.letters import Letter
    from worker.settings.schema import KafkaSettings

_CONTINUES: Final = "run the same command again: it continues"
_FENCED: Final = (kafka_errors.ProducerFencedError, kafka_errors.InvalidProducerEpochError)
_TOO_LARGE: Final = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)
# The broker aborts a transaction that takes longer than its timeout; ours ends before.
_SHARE_OF_TIMEOUT: Final = 0.8
_ABORT_SECONDS: Final = 2.0
# The version of the form of receipts.
_VERSION: Final = b"1"


class Outgoing(NamedTuple):
    """A letter that is to be sent back; where `partition` is None, its key chooses one."""

    letter: Letter
    partition: int | None


class Sender:
    """The one producer that may send back the letters of a topic: a second one fences the first."""

    def __init__(self, settings: KafkaSettings) -> None:
        """Start a producer.

        Raises:
            KafkaError: the brokers do not answer, or refuse.

        """
        self._topic = settings.dead_letter_topic
        self._seconds = settings.transaction_timeout_seconds * _SHARE_OF_TIMEOUT
        self._in_transaction = False
        self._producer = new_producer(
            settings,
            transactional_id=f"{settings.dead_letter_topic}-redrive",
            transaction_timeout_ms=in_ms(settings.transaction_timeout_seconds),
            max_block_ms=in_ms(settings.deadline_seconds),
            value_serializer=NullSerializer(),
        )

    def __enter__(self) -> Self:
        """Fence any other sender, and let the broker decide on the transaction that it left open.

        Raises:
            KafkaError: the brokers do not answer, or refuse.

        """
        try:
            self._producer.init_transactions()
        except BaseException:
            close_by_force(self._producer)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Abort a transaction that is open, or readers would wait until it times out."""
        if self._in_transaction:
            deadline = Deadline(_ABORT_SECONDS)
            with suppress(kafka_errors.KafkaError):
                await_result(begin_abort(self._producer), deadline)
        close_by_force(self._producer)

    def send(self, letters: Sequence[Outgoing], receipts: Mapping[int, bytes]) -> None:
        """Send letters back and write receipts in one transaction, all or nothing.

        `receipts` has them by the partition of the dead-letter topic that they are written to.

        Raises:
            WorkerError: nothing was sent, or it is not known; the receipts show a new sender which.

        """
        deadline = Deadline(self._seconds)
        try:
            self._producer.begin_transaction()
            self._in_transaction = True
            sent = [(outgoing.letter.source, self._send_back(outgoing)) for outgoing in letters]
            sent += [(self._topic, self._send_receipt(*receipt)) for receipt in receipts.items()]
            futures = [future for _, future in sent]
            if not deadline.wait(lambda seconds: flushed(self._producer, futures, seconds)):
                raise kafka_errors.KafkaTimeoutError
            for topic, future in sent:
                if future.failed():
                    raise self._explain(future.exception, topic)
            await_result(begin_commit(self._producer), deadline)
        except kafka_errors.KafkaError as error:
            raise self._explain(error) from None
        self._in_transaction = False

    def _send_back(self, outgoing: Outgoing) -> Any:  # noqa: ANN401 - kafka-python has no types
        letter, partition = outgoing
        headers = [(name, value) for name, value in letter.headers if name != ROUNDS]
        headers.append((ROUNDS, str(letter.rounds + 1).encode()))
        try:
            return send_with_nulls(
                self._producer,
                letter.source,
                letter.value,
                key=letter.key,
                headers=headers,
                partition=partition,
            )
        except kafka_errors.MessageSizeTooLargeError:
            raise WorkerError(
                f"the record of {letter.place} is larger than kafka.max_message_bytes",
                f"raise that setting, then {_CONTINUES}",
            ) from None

    def _send_receipt(self, partition: int, receipt: bytes) -> Any:  # noqa: ANN401 - kafka-python has no types
        headers = [(REDRIVE, _VERSION)]
        return send_with_nulls(
            self._producer, self._topic, receipt, headers=headers, partition=partition
        )

    def _explain(self, error: kafka_errors.KafkaError, topic: str = "") -> WorkerError:
        if isinstance(error, _TOO_LARGE):
            return WorkerError(
                f"a record is larger than the topic {topic} takes",
                f"raise its max.message.bytes, then {_CONTINUES}",
            )
        cause = last_error(self._producer) or error
        if isinstance(cause, _FENCED):
            return WorkerError(
                f"another redrive of {self._topic} has begun, or a transaction took too long",
                _CONTINUES,
            )
        return WorkerError(sentence(cause), _CONTINUES)
