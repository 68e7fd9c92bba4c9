"""`worker check`: looks at everything that `worker run` needs, and prints a line for each finding.

It changes nothing in Kafka: it sends no record, and it does not join the group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kafka import errors as kafka_errors

from worker.assembly import fields_of
from worker.check.brokers import BROKERS, CREDENTIALS, brokers
from worker.check.findings import Finding, Level
from worker.check.group import group, producer, time_limits
from worker.check.machine import cache, cpu, model
from worker.check.topics import internal_topics, own_topics
from worker.errors import ConfigurationError
from worker.terminal.sentences import show
from worker.transports.kafka.admin import BrokerQueries
from worker.transports.kafka.clients import client_options, new_admin, sentence

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.settings.schema import Settings


def check(settings: Settings) -> int:
    """Print a line for each finding; returns the exit code, which is 1 where something failed.

    Raises:
        ConfigurationError: the settings contradict each other.

    """
    fields_of(settings.input)
    failed = False
    for finding in _findings(settings):
        show(str(finding))
        failed |= finding.level is Level.FAIL
    return int(failed)


def _findings(settings: Settings) -> Iterator[Finding]:
    yield from _kafka(settings)
    yield from model(settings)
    yield from cache(settings)
    yield from cpu(settings)


def _kafka(settings: Settings) -> Iterator[Finding]:
    problem = "they were not looked at: that needs a broker that lets the worker in"
    rest = Finding(Level.SKIP, "topics, rights", problem)
    try:
        options = client_options(settings.kafka)
    except ConfigurationError as error:
        yield Finding(Level.FAIL, CREDENTIALS, str(error))
        yield rest
        return
    if not (yield from brokers(settings.kafka, options)):
        yield rest
        return
    try:
        yield from _cluster(settings)
    except kafka_errors.KafkaError as error:
        problem = f"{sentence(error)}; the rest of Kafka was not looked at: try again"
        yield Finding(Level.FAIL, BROKERS, problem)


def _cluster(settings: Settings) -> Iterator[Finding]:
    """Look at topics, group, producer and time limits, which brokers are asked for.

    Raises:
        KafkaError: the brokers do not answer.

    """
    admin = new_admin(settings.kafka)
    try:
        queries = BrokerQueries(admin, settings.kafka.request_timeout_seconds)
        topics = yield from own_topics(queries, settings)
        yield from group(queries, settings.kafka, topics)
        yield from producer(queries, settings.kafka)
        yield from time_limits(queries, settings.kafka)
        # These come last, because the first question to a coordinator creates its topic.
        yield from internal_topics(queries, settings.kafka)
    finally:
        admin.close()
