"""Finds out whether the group and the producer may be used, and whether our time limits fit.

Brokers are asked for what they must refuse anyway, the heartbeat of a member that does not exist or
the end of a transaction that nobody has begun. The reason that they give shows whether we have the
rights.
"""

from __future__ import annotations

import operator
import uuid
from typing import TYPE_CHECKING, Final

from kafka import errors as kafka_errors
from kafka.protocol.consumer import HeartbeatRequest
from kafka.protocol.metadata import CoordinatorType
from kafka.protocol.producer import EndTxnRequest, InitProducerIdRequest

from worker.check.findings import Finding, Level
from worker.check.topics import GROUPS_TOPIC, TRANSACTIONS_TOPIC, Role

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from worker.check.topics import Topic
    from worker.settings.schema import KafkaSettings
    from worker.transports.kafka.admin import BrokerQueries

_CONFIGS: Final = [
    "group.max.session.timeout.ms",
    "group.min.session.timeout.ms",
    "offsets.retention.minutes",
    "transaction.max.timeout.ms",
]
_MINUTES_A_DAY: Final = 24 * 60
# The brokers give this id to no producer.
_NO_PRODUCER: Final = 2**63 - 1


def group(
    queries: BrokerQueries, kafka: KafkaSettings, topics: Sequence[Topic]
) -> Iterator[Finding]:
    """Find out whether the group may be used, and where it begins.

    Raises:
        KafkaError: the brokers do not answer.

    """
    about = f"group {kafka.group}"
    heartbeat = HeartbeatRequest(group_id=kafka.group, generation_id=-1, member_id="worker-check")
    error = queries.error_of(heartbeat, (CoordinatorType.GROUP, kafka.group))
    if issubclass(error, kafka_errors.AuthorizationError):
        yield Finding(Level.FAIL, about, "the worker may not use it; allow READ on it")
        return
    if issubclass(error, kafka_errors.RetriableError):
        yield Finding(Level.FAIL, about, f"no broker coordinates it; see {GROUPS_TOPIC}")
        return
    offsets = queries.ask(lambda: queries.admin.list_group_offsets({kafka.group: None}))
    known = {partition.topic for partition in offsets[kafka.group]} & set(kafka.input_topics)
    where = (
        "it continues at its committed offsets"
        if known
        else f"it has no offsets yet, so it begins at the {kafka.start} records"
    )
    yield Finding(Level.OK, about, f"the worker may use it; {where}")
    (output,) = (topic for topic in topics if topic.role is Role.OUTPUT)
    if output.rights is not None and "READ" not in output.rights:
        problem = (
            "the worker may not read it, where a group that begins looks for labels of its own"
        )
        level = Level.WARN if known else Level.FAIL
        yield output.finding(level, f"{problem}; allow READ on it")


def producer(queries: BrokerQueries, kafka: KafkaSettings) -> Iterator[Finding]:
    """Find out whether the producer of the chosen guarantee may be used.

    Raises:
        KafkaError: the brokers do not answer.

    """
    if kafka.guarantee == "at-least-once":
        about, advice = "idempotent writing", "WRITE on the topics"
        begin = InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=0)
        error = queries.error_of(begin)
    else:
        # Without the setting, each worker chooses an id that no producer has yet.
        name = kafka.transactional_id or f"{kafka.group}-{uuid.uuid4().hex}"
        about = f"transactional id {kafka.transactional_id or kafka.group + '-*'}"
        advice = "WRITE on it" + ("" if kafka.transactional_id else ", as a prefix")
        end = EndTxnRequest(
            transactional_id=name, producer_id=_NO_PRODUCER, producer_epoch=0, committed=False
        )
        error = queries.error_of(end, (CoordinatorType.TRANSACTION, name))
    if issubclass(error, kafka_errors.AuthorizationError):
        yield Finding(Level.FAIL, about, f"the worker may not use it; allow {advice}")
    elif issubclass(error, kafka_errors.RetriableError):
        yield Finding(Level.FAIL, about, f"no broker coordinates it; see {TRANSACTIONS_TOPIC}")
    else:
        yield Finding(Level.OK, about, "the worker may use it")


def time_limits(queries: BrokerQueries, kafka: KafkaSettings) -> Iterator[Finding]:
    """Compare our time limits with those of a broker.

    Raises:
        KafkaError: the brokers do not answer.

    """
    about = "time limits"
    broker = str(queries.ask(queries.admin.describe_cluster)["brokers"][0]["broker_id"])
    configs = queries.configs("BROKER", [broker], _CONFIGS)[broker]
    if not configs:
        advice = "allow DESCRIBE_CONFIGS on the cluster to have them compared"
        yield Finding(Level.SKIP, about, f"the worker may not read those of the brokers; {advice}")
        return
    session, transaction = kafka.session_timeout_seconds, kafka.transaction_timeout_seconds
    asked = [
        ("session", session, "group.min.session.timeout.ms", operator.ge),
        ("session", session, "group.max.session.timeout.ms", operator.le),
    ]
    if kafka.guarantee == "exactly-once":
        asked += [("transaction", transaction, "transaction.max.timeout.ms", operator.le)]
    refused = [
        f"kafka.{name}_timeout_seconds is {seconds:g}, but {config} is {configs[config]}"
        for name, seconds, config, fits in asked
        if config in configs and not fits(seconds * 1000, int(configs[config]))
    ]
    for problem in refused:
        yield Finding(Level.FAIL, about, f"{problem}: the brokers refuse that; change one of them")
    if not refused:
        kept = int(configs.get("offsets.retention.minutes", 0)) / _MINUTES_A_DAY
        offsets = f"; they keep offsets for {kept:g} days after a group has ended" if kept else ""
        yield Finding(Level.OK, about, f"the brokers accept those of the worker{offsets}")
