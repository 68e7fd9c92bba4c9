"""Creates Kafka clients from the settings, and says in our own sentences what they raise.

kafka-python's own messages may quote records and secrets, so they are never passed on.
"""

from __future__ import annotations

import logging
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka import errors as kafka_errors
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.structs import MemberState

from worker.errors import ConfigurationError, WorkerError
from worker.transports.kafka.client_internals import (
    ReadingLimits,
    TruthfulAssignor,
    create_client,
    fetch_with_care,
    forget_paused_records,
    never_send_twice_in_a_transaction,
    rejoin_where_forgotten,
    split_with_care,
    tell_ownership,
)
from worker.transports.kafka.durations import in_ms

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kafka.structs import ConsumerGroupMetadata
    from pydantic import SecretStr

    from worker.settings.schema import KafkaSettings

# Its log quotes records. What it says that matters reaches people in sentences of ours.
logging.getLogger("kafka").setLevel(logging.CRITICAL)

# What the errors mean that brokers, or someone who manages them, can set right while we wait.
_SENTENCES: Final[tuple[tuple[type[Exception], str], ...]] = (
    (kafka_errors.SaslAuthenticationFailedError, "the brokers refuse the credentials"),
    (kafka_errors.UnsupportedSaslMechanismError, "the brokers do not offer this SASL mechanism"),
    (kafka_errors.TopicAuthorizationFailedError, "a topic may not be used"),
    (kafka_errors.GroupAuthorizationFailedError, "the consumer group may not be used"),
    (kafka_errors.TransactionalIdAuthorizationFailedError, "the transactional id may not be used"),
    (kafka_errors.ClusterAuthorizationFailedError, "the cluster may not be used"),
    (kafka_errors.UnknownTopicOrPartitionError, "a topic does not exist"),
    (kafka_errors.ProducerFencedError, "another producer has taken the transactional id"),
    (kafka_errors.InvalidProducerEpochError, "another producer has taken the transactional id"),
    (kafka_errors.CommitFailedError, "the partitions have gone to another worker"),
    (kafka_errors.NotEnoughReplicasError, "too few replicas are in sync"),
    (kafka_errors.NotEnoughReplicasAfterAppendError, "too few replicas are in sync"),
    # A wrong password, a certificate or a missing topic also looks like this from here.
    (
        kafka_errors.KafkaTimeoutError,
        "the brokers do not answer: they are away, refuse our credentials, or lack a topic",
    ),
    (kafka_errors.RequestTimedOutError, "the brokers do not answer in time"),
    (kafka_errors.KafkaConnectionError, "the brokers cannot be reached"),
    (kafka_errors.MetadataEmptyBrokerList, "the brokers cannot be reached"),
)


def sentence(error: BaseException) -> str:
    """Say what an error of the client means; its own text may quote records or secrets."""
    for kind, meaning in _SENTENCES:
        if isinstance(error, kind):
            return meaning
    return f"the Kafka client failed ({type(error).__name__})"


@contextmanager
def explained_kafka_errors() -> Iterator[None]:
    """Turn the errors of the Kafka client into sentences.

    Raises:
        WorkerError: a call failed.

    """
    try:
        yield
    except kafka_errors.KafkaError as error:
        raise WorkerError(sentence(error), "`worker check` says more") from None


def new_consumer(
    settings: KafkaSettings,
    more_header_bytes: int = 0,
    **more: Any,  # noqa: ANN401 - options of the client, of many types
) -> KafkaConsumer:
    """Return a consumer of the group; it has not joined yet.

    It leaves headers out that are longer than those of an event may be, and by so much more.

    Raises:
        KafkaError: the brokers do not answer, or refuse.

    """
    cooperative = TruthfulAssignor()
    assignor = cooperative if settings.assignment == "cooperative" else RangePartitionAssignor
    consumer = create_client(
        KafkaConsumer,
        **(
            client_options(settings)
            | {
                "group_id": settings.group,
                "enable_auto_commit": False,
                "isolation_level": "read_committed",
                # `positions` decides where a group starts.
                "auto_offset_reset": "none",
                "allow_auto_create_topics": False,
                "partition_assignment_strategy": [assignor],
                "max_poll_records": settings.chunk_records,
                "max_poll_interval_ms": in_ms(settings.max_poll_interval_seconds),
                "session_timeout_ms": in_ms(settings.session_timeout_seconds),
                "heartbeat_interval_ms": in_ms(min(3, settings.session_timeout_seconds / 4)),
                "metrics_enabled": False,
            }
            | more
        ),
    )
    tell_ownership(cooperative, consumer)
    limits = ReadingLimits(settings.max_batch_bytes, settings.max_header_bytes + more_header_bytes)
    fetch_with_care(consumer, limits)
    return consumer


def new_producer(settings: KafkaSettings, **more: Any) -> KafkaProducer:  # noqa: ANN401 - options of the client, of many types
    """Return an idempotent producer.

    Raises:
        KafkaError: the brokers do not answer, or refuse.

    """
    producer = create_client(
        KafkaProducer,
        **(
            client_options(settings)
            | {
                "acks": "all",
                "enable_idempotence": True,
                "allow_auto_create_topics": False,
                "compression_type": None
                if settings.compression == "none"
                else settings.compression,
                # Records wait so long at most; the flush that ends every chunk sends them before.
                "linger_ms": 100,
                "batch_size": 128 * 1024,
                "max_request_size": settings.max_message_bytes,
                "max_block_ms": in_ms(settings.request_timeout_seconds),
                "retry_backoff_ms": 20,
                "metrics_enabled": False,
            }
            | more
        ),
    )
    split_with_care(producer)
    if "transactional_id" in more:
        never_send_twice_in_a_transaction(producer)
    return producer


def new_admin(settings: KafkaSettings) -> KafkaAdminClient:
    """Return an admin client.

    Raises:
        KafkaError: the brokers do not answer, or refuse.

    """
    return create_client(KafkaAdminClient, **client_options(settings))


def is_member(consumer: KafkaConsumer, group: ConsumerGroupMetadata) -> bool:
    """Return whether what a poll has just returned is ours by the group of that moment.

    A join goes on while polls end early, and its new generation shows before the new assignment
    is taken over: records of the old one would be committed as if they were still ours. A consumer
    that has forgotten that it was joining is made to join again.
    """
    if group.state == MemberState.REBALANCING:
        rejoin_where_forgotten(consumer)
    stable = group.state == MemberState.STABLE
    return stable and group.generation_id >= 0 and bool(group.member_id)


def resume(consumer: KafkaConsumer) -> None:
    """Let all partitions be read on from where they stand, whether or not they were paused.

    What had been fetched of them is forgotten, and fetched again.
    """
    forget_paused_records(consumer)
    consumer.resume(*consumer.assignment())


def risks(settings: KafkaSettings) -> Iterator[str]:
    """Yield what others on the network could do because of the settings."""
    if settings.sasl.mechanism == "plain" and not settings.tls.enabled:
        yield "the password is sent in clear; set kafka.tls.enabled, or log in by scram"
    if settings.tls.enabled and not settings.tls.check_hostname:
        yield (
            "kafka.tls.check_hostname is off: whoever has a certificate that is trusted here may "
            "stand in for a broker"
        )


def client_options(settings: KafkaSettings) -> dict[str, Any]:
    """Return what all clients need: where the brokers are, and who we are to them.

    Raises:
        ConfigurationError: a file of secrets or certificates cannot be used.

    """
    tls, sasl = settings.tls, settings.sasl
    secure = sasl.mechanism != "none"
    options: dict[str, Any] = {
        "bootstrap_servers": list(settings.brokers),
        "client_id": settings.client_id,
        "request_timeout_ms": in_ms(settings.request_timeout_seconds),
        "bootstrap_timeout_ms": in_ms(settings.request_timeout_seconds),
        # Partitions that were added are seen after so long at most.
        "metadata_max_age_ms": 30_000,
        "security_protocol": ("SASL_" if secure else "") + ("SSL" if tls.enabled else "PLAINTEXT"),
    }
    if tls.enabled:
        options["ssl_context"] = _ssl_context(settings)
    if secure:
        options["sasl_mechanism"] = sasl.mechanism.upper()
        options["sasl_plain_username"] = sasl.username
        options["sasl_plain_password"] = _secret(
            sasl.password, sasl.password_file, "kafka.sasl.password_file"
        )
    return options


def _ssl_context(settings: KafkaSettings) -> ssl.SSLContext:
    tls = settings.tls
    try:
        context = ssl.create_default_context(cafile=tls.ca)
    except (OSError, ssl.SSLError):
        raise ConfigurationError(
            f"kafka.tls.ca: {tls.ca} is not a file of certificates", "it must be PEM"
        ) from None
    context.check_hostname = tls.check_hostname
    if tls.certificate and tls.key:
        password = _secret(tls.key_password, tls.key_password_file, "kafka.tls.key_password_file")
        try:
            # Without a password OpenSSL would ask for one on the terminal.
            context.load_cert_chain(tls.certificate, tls.key, password or "")
        except (OSError, ssl.SSLError):
            raise ConfigurationError(
                f"kafka.tls: {tls.certificate} and {tls.key} cannot be used",
                "both must be PEM and belong together, and kafka.tls.key_password must fit",
            ) from None
    return context


def _secret(value: SecretStr | None, file: Path | None, name: str) -> str | None:
    if value is not None:
        return value.get_secret_value()
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError):
        raise ConfigurationError(f"{name}: {file} cannot be read") from None
