"""`worker create-topics` creates those topics of the settings that do not exist yet."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Final

from kafka import errors as kafka_errors

from worker.logs.logger import log
from worker.terminal.sentences import show
from worker.transports.kafka.admin import BrokerQueries
from worker.transports.kafka.clients import explained_kafka_errors, new_admin, sentence
from worker.transports.kafka.sizes import MAX_MESSAGE_BYTES, dead_letter_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kafka import KafkaAdminClient

    from worker.settings.schema import KafkaSettings

_PAUSE_SECONDS: Final = 0.5
# The number by which a client leaves the choice to the brokers' own default.
_DEFAULT: Final = -1


def create_topics(
    settings: KafkaSettings, partitions: int | None, replicas: int | None, wait_seconds: float
) -> None:
    """Create input, output and dead-letter topics, and print a line for each.

    Where `partitions` or `replicas` is None, the brokers choose. The dead-letter topic gets room for
    the largest event that the input topics take. Topics that exist stay as they are. Brokers that do
    not answer are asked again for `wait_seconds`.

    Raises:
        WorkerError: the brokers do not answer in time, or refuse.

    """
    shape = {
        "num_partitions": partitions or _DEFAULT,
        "replication_factor": replicas or _DEFAULT,
    }
    with (
        explained_kafka_errors(),
        closing(_connected(settings, time.monotonic() + wait_seconds)) as admin,
    ):
        queries = BrokerQueries(admin, settings.request_timeout_seconds)
        for topic in settings.input_topics:
            _create(queries, topic, shape)
        limits = queries.configs("TOPIC", settings.input_topics, [MAX_MESSAGE_BYTES])
        event = max(int(configs.get(MAX_MESSAGE_BYTES, 0)) for configs in limits.values())
        _create(queries, settings.output_topic, shape)
        room = {MAX_MESSAGE_BYTES: str(dead_letter_bytes(event, settings))} if event else {}
        _create(queries, settings.dead_letter_topic, shape | {"configs": room})


def _connected(settings: KafkaSettings, until: float) -> KafkaAdminClient:
    warned_of = ""
    while True:
        try:
            return new_admin(settings)
        except kafka_errors.KafkaError as error:
            if time.monotonic() > until:
                raise
            if warned_of != (problem := sentence(error)):
                log.warning("waiting", problem=problem)
                warned_of = problem
        time.sleep(_PAUSE_SECONDS)


def _create(queries: BrokerQueries, topic: str, shape: Mapping[str, object]) -> None:
    def create() -> bool:
        try:
            queries.admin.create_topics({topic: shape}, wait_for_metadata=True)
        except kafka_errors.TopicAlreadyExistsError:
            return False
        return True

    created = queries.ask(create)
    (description,) = queries.admin.describe_topics([topic])
    number = len(description["partitions"])
    show(f"{topic}: {'created' if created else 'is there'}, {number} partitions")
