"""Queries to the brokers, which are repeated while the brokers are not ready to answer."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from kafka import errors as kafka_errors
from kafka.admin import ConfigResource

from worker.transports.kafka.client_internals import ask_broker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kafka import KafkaAdminClient
    from kafka.protocol.metadata import CoordinatorType

T = TypeVar("T")

_PAUSE_SECONDS: Final = 0.2
_NO_COORDINATOR: Final = (
    kafka_errors.CoordinatorNotAvailableError,
    kafka_errors.CoordinatorLoadInProgressError,
    kafka_errors.NotCoordinatorError,
)


@dataclass(frozen=True, slots=True)
class BrokerQueries:
    """Asks by an admin client, and repeats a question for `seconds` at most."""

    admin: KafkaAdminClient
    seconds: float

    def ask(self, question: Callable[[], T], good: Callable[[T], bool] = lambda _: True) -> T:
        """Ask until the answer is good or the time is over, and return the last answer.

        Raises:
            KafkaError: the brokers did not answer in time, or refuse.

        """
        ends = time.monotonic() + self.seconds
        while True:
            try:
                answer = question()
                if good(answer) or time.monotonic() > ends:
                    return answer
            except kafka_errors.RetriableError:
                if time.monotonic() > ends:
                    raise
            time.sleep(_PAUSE_SECONDS)

    def configs(
        self, kind: str, names: Sequence[str], keys: Sequence[str]
    ) -> dict[str, dict[str, str]]:
        """Return the configs `keys` of each resource, by its name; none where they may not be read.

        Raises:
            KafkaError: the brokers do not answer.

        """
        resources = [ConfigResource(kind, name, list(keys)) for name in names]
        answer = self.ask(lambda: self.admin.describe_configs(resources, config_filter="all"))
        found = answer[kind.lower()]
        return {
            name: {key: config["value"] for key, config in found[name].items()} for name in names
        }

    def error_of(
        self, request: object, coordinator: tuple[CoordinatorType, str] | None = None
    ) -> type[kafka_errors.KafkaError]:
        """Return the error with which any broker, or the coordinator of something, answers.

        Raises:
            KafkaError: the brokers do not answer.

        """

        def answer() -> type[kafka_errors.KafkaError]:
            code = ask_broker(self.admin, request, coordinator).error_code
            error: type[kafka_errors.KafkaError] = kafka_errors.for_code(code)
            if issubclass(error, kafka_errors.RetriableError):
                raise error
            return error

        try:
            return self.ask(answer)
        except (*_NO_COORDINATOR, kafka_errors.AuthorizationError) as error:
            return type(error)
