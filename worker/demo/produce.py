"""`worker demo`: writes the examples to the input topic, then an endless chat made from them."""

from __future__ import annotations

import random
import time
from itertools import chain, islice
from typing import TYPE_CHECKING, Final

from kafka.errors import KafkaError

from worker.demo.chat import ChatStream, example_messages
from worker.errors import ConfigurationError
from worker.logs.logger import log
from worker.terminal.signals import StopSignal
from worker.transports.kafka.clients import explained_kafka_errors, new_producer, sentence

if TYPE_CHECKING:
    from kafka import KafkaProducer

    from worker.demo.chat import ChatRecord
    from worker.settings.schema import Settings

_LINGER_MS: Final = 5
_CLOSE_SECONDS: Final = 5.0
_NAP_SECONDS: Final = 0.2


def demo(settings: Settings, rate: float, number: int | None, seed: int | None) -> int:
    """Write messages to the first input topic until asked to stop, or until `number` are written.

    `rate` is the mean number of messages a second. The same `seed` gives the same chat. Returns the
    exit code, which is 1 where a message was not written.

    Raises:
        ConfigurationError: a worker with these settings would not read what is written.
        WorkerError: the brokers do not answer, or refuse.

    """
    if settings.kafka.format != "json" or settings.input.text_field != "text":
        raise ConfigurationError(
            "the demo writes JSON with the text in the field 'text', and the worker reads "
            "something else",
            "set kafka.format to json and input.text_field to text, or do without the demo",
        )
    seed = int(time.time()) if seed is None else seed
    messages = islice(chain(example_messages(), ChatStream(seed).messages()), number)
    topic = settings.kafka.input_topics[0]
    pauses = random.Random(seed)  # noqa: S311 - a chat is no secret
    with explained_kafka_errors(), StopSignal() as stop:
        outlet = _Outlet(new_producer(settings.kafka, linger_ms=_LINGER_MS), topic)
        log.info("writing", topic=topic, rate=rate, seed=seed)
        due = time.monotonic()
        for message in messages:
            due += pauses.expovariate(rate)
            while stop.received is None and (ahead := due - time.monotonic()) > 0:
                time.sleep(min(ahead, _NAP_SECONDS))
            if stop.received is not None:
                break
            outlet.write(message)
        return outlet.close()


class _Outlet:
    """A producer that counts the messages that cannot be written, and goes on with the next."""

    def __init__(self, producer: KafkaProducer, topic: str) -> None:
        self._producer = producer
        self._topic = topic
        self._written = 0
        self._failed = 0
        self._problem = ""

    def write(self, message: ChatRecord) -> None:
        try:
            future = self._producer.send(self._topic, message.value, key=message.key)
        except KafkaError as error:
            self._fail(error)
            return
        self._written += 1
        future.add_errback(self._fail)

    def close(self) -> int:
        self._producer.close(timeout=_CLOSE_SECONDS)
        log.info("stopped", written=self._written, failed=self._failed)
        return int(self._failed > 0)

    def _fail(self, error: BaseException) -> None:
        self._failed += 1
        if self._problem != (problem := sentence(error)):
            self._problem = problem
            log.warning("messages are not written", topic=self._topic, problem=problem)
