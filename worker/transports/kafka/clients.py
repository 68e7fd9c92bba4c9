"""Kafka clients made from the settings, and sentences of ours for what they raise.

kafka-python's own messages may quote records and secrets, so they are never passed on.
"""

from __future__ import annotations

import logging
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka import errors as kafka_errors
from kafka.consumer.fetcher import Fetcher
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.net.compat import KafkaNetClient
from kafka.structs import MemberState

from worker.errors import ConfigurationError, WorkerError
from worker.transports.kafka.deadline import milliseconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kafka.structs import ConsumerGroupMetadata
    from pydantic import SecretStr

    from worker.settings.schema import KafkaSettings

# Its log quotes records and is explained_kafka_errors in sentences of ours anyway.
logging.getLogger("kafka").setLevel(logging.CRITICAL)

# What the brokers, or someone who manages them, can set right while the worker waits.
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
    # Also what a wrong password, a certificate or a missing topic looks like from here.
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


def new_consumer(settings: KafkaSettings, **more: Any) -> KafkaConsumer:  # noqa: ANN401 - its options
    """Return a consumer of the group; it has not joined yet.

    Raises:
        KafkaError: the brokers do not answer, or refuse.

    """
    assignor = (
        CooperativeStickyAssignor
        if settings.assignment == "cooperative"
        else RangePartitionAssignor
    )
    consumer = _new_client(
        KafkaConsumer,
        **(
            client_options(settings)
            | {
                "group_id": settings.group,
                "enable_auto_commit": False,
                "isolation_level": "read_committed",
                # Where to start is for us to decide: see positions.
                "auto_offset_reset": "none",
                "allow_auto_create_topics": False,
                "partition_assignment_strategy": [assignor],
                "max_poll_records": settings.chunk_records,
                "max_poll_interval_ms": milliseconds(settings.max_poll_interval_seconds),
                "session_timeout_ms": milliseconds(settings.session_timeout_seconds),
                "heartbeat_interval_ms": milliseconds(min(3, settings.session_timeout_seconds / 4)),
                "metrics_enabled": False,
            }
            | more
        ),
    )
    consumer._fetcher.__class__ = _Fetcher  # noqa: SLF001 - nothing public leads there
    return consumer


def fetch_ahead(consumer: KafkaConsumer) -> None:
    """Ask for records of all partitions of which none are here, for the next poll to find."""
    consumer._fetcher.send_fetches()  # noqa: SLF001 - as above


class _Records(Fetcher.PartitionRecords):  # type: ignore[misc]  # kafka-python has no types
    """Records of a fetch that raise again at what cannot be decoded.

    The client's own would be empty from then on, and its poll would never return.
    """

    def take(self, n: int | None = None) -> list[Any]:
        """Return the next records."""
        try:
            records: list[Any] = super().take(n)
        except Exception as error:
            self._next_inline_exception = error
            raise
        return records


class _Fetcher(Fetcher):  # type: ignore[misc]  # kafka-python has no types
    """Asks for records when explained_kafka_errors to, or when a poll finds none.

    The client's own asks whenever a poll gives records away. The answer has what came until then,
    and grows old while those are labelled.
    """

    PartitionRecords = _Records

    def fetch_records(
        self,
        max_records: int | None = None,
        update_offsets: bool = True,  # noqa: FBT001, FBT002 - the client's signature
        timeout_ms: float | None = None,
    ) -> Any:  # noqa: ANN401 - as above
        """Return records that are here, by partition, and whether there is nothing to wait for."""
        records, _ = self.fetched_records(max_records, update_offsets=update_offsets)
        if records:
            return records, False
        return super().fetch_records(max_records, update_offsets, timeout_ms)


def new_producer(settings: KafkaSettings, **more: Any) -> KafkaProducer:  # noqa: ANN401 - its options
    """Return an idempotent producer.

    Raises:
        KafkaError: the brokers do not answer, or refuse.

    """
    return _new_client(
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
                # Records wait for the flush that ends every chunk.
                "linger_ms": 100,
                "batch_size": 128 * 1024,
                "max_request_size": settings.max_message_bytes,
                "max_block_ms": milliseconds(settings.request_timeout_seconds),
                "retry_backoff_ms": 20,
                "metrics_enabled": False,
            }
            | more
        ),
    )


def new_admin(settings: KafkaSettings) -> KafkaAdminClient:
    """Return an admin client.

    Raises:
        KafkaError: the brokers do not answer, or refuse.

    """
    return _new_client(KafkaAdminClient, **client_options(settings))


def _new_client(kind: Callable[..., Any], **options: Any) -> Any:  # noqa: ANN401 - as above
    """Make a client; where it cannot connect, end the thread that kafka-python leaves behind."""
    networks: list[KafkaNetClient] = []

    def network(**more: Any) -> KafkaNetClient:  # noqa: ANN401 - as above
        networks.append(KafkaNetClient(**more))
        return networks[-1]

    try:
        return kind(**options, kafka_client=network)
    except kafka_errors.KafkaError:
        for each in networks:
            each.close()
        raise


def is_member(consumer: KafkaConsumer, group: ConsumerGroupMetadata) -> bool:
    """Return whether what a poll has just returned is ours by the group of that moment.

    A join goes on while polls end early, and its new generation shows before the new assignment
    is taken over: records of the old one would be committed as if they were still ours. Where the
    topic's metadata settles meanwhile, the client even forgets that it was joining, for good; then
    it is explained_kafka_errors to join again.
    """
    if group.state == MemberState.REBALANCING and not consumer._coordinator.need_rejoin():  # noqa: SLF001 - nothing public brings it back
        consumer._coordinator.request_rejoin()  # noqa: SLF001 - as above
    stable = group.state == MemberState.STABLE
    return stable and group.generation_id >= 0 and bool(group.member_id)


def resume(consumer: KafkaConsumer) -> None:
    """Let all partitions be read on from where they stand, whether or not they were paused.

    The client keeps aside what it had fetched of a paused partition, and puts it back only as long
    as nothing else came meanwhile. If it does not, it fetches nothing more of that partition.
    """
    consumer._fetcher._paused_completed_fetches.clear()  # noqa: SLF001 - nothing public drops it
    consumer._fetcher._paused_partition_records.clear()  # noqa: SLF001 - as above
    consumer.resume(*consumer.assignment())


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
        "request_timeout_ms": milliseconds(settings.request_timeout_seconds),
        "bootstrap_timeout_ms": milliseconds(settings.request_timeout_seconds),
        # How soon partitions are seen that were added.
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
