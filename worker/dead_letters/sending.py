"""Sends records back to their topics, with the receipts for them in the same transaction."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from kafka import errors as kafka_errors

from worker.errors import WorkerError
from worker.transports.base import ChunkAbandonedError
from worker.transports.kafka.batches import failures
from worker.transports.kafka.client_internals import (
    begin_abort,
    begin_commit,
    close_by_force,
    last_error,
)
from worker.transports.kafka.clients import new_producer, sentence
from worker.transports.kafka.deadline import Deadline
from worker.transports.kafka.durations import in_ms
from worker.transports.kafka.publishers import TOO_LARGE, await_result, send_all
from worker.transports.kafka.records import REDRIVE, ROUNDS, ProducerRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.dead_letters.letters import Letter
    from worker.settings.schema import KafkaSettings
    from worker.transports.kafka.batches import SentRecordBatch
    from worker.transports.kafka.publication import Coordinates

_CONTINUES: Final = "run the same command again: it continues"
_FENCED: Final = (kafka_errors.ProducerFencedError, kafka_errors.InvalidProducerEpochError)
# The broker aborts a transaction that takes longer than its timeout; ours ends before.
_SHARE_OF_TIMEOUT: Final = 0.8
_ABORT_SECONDS: Final = 2.0
# Where no letter is.
_BEHIND: Final = -1
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

    def send(self, letters: Mapping[Coordinates, Outgoing], receipts: Mapping[int, bytes]) -> None:
        """Send letters back and write receipts in one transaction, all or nothing.

        `letters` has them by their own coordinates, `receipts` by the partition of the dead-letter
        topic that they are written to.

        Raises:
            WorkerError: nothing was sent, or it is not known; the receipts show a new sender which.

        """
        deadline = Deadline(self._seconds)
        records = {place: _sent_back(*outgoing) for place, outgoing in letters.items()}
        for partition, receipt in receipts.items():
            records[self._topic, partition, _BEHIND] = self._receipt(partition, receipt)
        sent: list[SentRecordBatch] = []
        try:
            self._producer.begin_transaction()
            self._in_transaction = True
            for place in send_all(self._producer, records, sent, deadline):
                what = (
                    f"the record of {letters[place].letter.place}"
                    if place in letters
                    else "a receipt"
                )
                raise WorkerError(
                    f"{what} is larger than kafka.max_message_bytes",
                    f"raise that setting, then {_CONTINUES}",
                )
            # Of a transaction that failed with a record that is too large, others fail as well.
            failed = sorted(
                failures(sent).items(), key=lambda each: not isinstance(each[1], TOO_LARGE)
            )
            for place, error in failed:
                raise self._explain(error, records[place].topic)
            await_result(begin_commit(self._producer), deadline)
        except ChunkAbandonedError as error:
            raise WorkerError(str(error), _CONTINUES) from None
        except kafka_errors.KafkaError as error:
            raise self._explain(error) from None
        self._in_transaction = False

    def _receipt(self, partition: int, receipt: bytes) -> ProducerRecord:
        return ProducerRecord(
            self._topic, receipt, None, [(REDRIVE, _VERSION)], partition=partition
        )

    def _explain(self, error: Exception, topic: str = "") -> WorkerError:
        if isinstance(error, TOO_LARGE):
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


def _sent_back(letter: Letter, partition: int | None) -> ProducerRecord:
    headers = [(name, value) for name, value in letter.headers if name != ROUNDS]
    headers.append((ROUNDS, str(letter.rounds + 1).encode()))
    return ProducerRecord(letter.source, letter.value, letter.key, headers, partition=partition)
