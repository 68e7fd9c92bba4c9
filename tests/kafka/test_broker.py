"""The brokers that other tests rely on do what those take for granted."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import pytest
from kafka import KafkaProducer, TopicPartition
from kafka.errors import (
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
)
from kafka.structs import OffsetAndMetadata

from tests.kafka.broker import PATIENCE, Kafka, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kafka.broker import Cluster, Node, Record, SecureCluster

ROOT = Path(__file__).parents[2]
NUMBERS = [b"%d" % number for number in range(10)]


TESTS_THAT_HANG = """
import sys, time
from pathlib import Path
from tests.kafka.broker import Cluster

with Cluster(Path(sys.argv[1])) as cluster:
    print(cluster.node.pid, flush=True)
    time.sleep(600)
"""


def records(partition: int | None = None) -> list[Record]:
    return [(None, number, (), partition, None) for number in NUMBERS]


def values(kafka: Kafka, topic: str, isolation: str = "read_committed") -> list[bytes]:
    return [record.value for record in kafka.read(topic, isolation)]


def runs(pid: int) -> bool:
    """Tell whether a process runs; of one that has ended the command is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except OSError:
        return False


@contextmanager
def transactional(kafka: Kafka, name: str) -> Iterator[KafkaProducer]:
    producer = KafkaProducer(**kafka.settings, transactional_id=name)
    try:
        producer.init_transactions()
        yield producer
    finally:
        producer.close(timeout=PATIENCE)


@pytest.fixture
def topic(kafka: Kafka, topic_names: Iterator[str]) -> str:
    name = next(topic_names)
    kafka.create_topic(name, partitions=2)
    return name


def test_a_record_is_read_as_it_was_produced(kafka: Kafka, topic: str) -> None:
    headers = [("from", b"here"), ("from", b"there")]
    kafka.produce(topic, [(b"key", b"value", headers, 1, 1_700_000_000_000)])
    (record,) = kafka.read(topic)
    assert (record.key, record.value, record.partition) == (b"key", b"value", 1)
    assert list(record.headers) == headers
    assert record.timestamp == 1_700_000_000_000


def test_a_topic_has_the_configs_it_was_created_with(
    kafka: Kafka, topic_names: Iterator[str]
) -> None:
    topic = next(topic_names)
    kafka.create_topic(topic, max_message_bytes="1000")
    with pytest.raises(MessageSizeTooLargeError):
        kafka.produce(topic, [(None, b"x" * 2000, (), None, None)])
    kafka.delete_topic(topic)


def test_what_a_transaction_wrote_is_read_when_it_is_committed(kafka: Kafka, topic: str) -> None:
    with transactional(kafka, topic) as producer:
        for commit in (True, False, True):
            producer.begin_transaction()
            sent = producer.send(topic, b"kept" if commit else b"dropped", partition=0)
            sent.get(timeout=PATIENCE)
            assert b"dropped" not in values(kafka, topic)
            (producer.commit_transaction if commit else producer.abort_transaction)()
    assert values(kafka, topic) == [b"kept", b"kept"]
    assert values(kafka, topic, "read_uncommitted") == [b"kept", b"dropped", b"kept"]


def test_offsets_that_a_transaction_committed_are_found(kafka: Kafka, topic: str) -> None:
    assert kafka.committed(topic, topic) == {}
    with transactional(kafka, topic) as producer:
        producer.begin_transaction()
        offsets = {TopicPartition(topic, 1): OffsetAndMetadata(7, "", -1)}
        producer.send_offsets_to_transaction(offsets, topic)
        producer.commit_transaction()
    assert kafka.committed(topic, topic) == {1: 7}


def test_who_comes_by_the_proxied_listener_looks_for_the_proxy(kafka_node: Node) -> None:
    with (
        closing(Kafka(f"127.0.0.1:{kafka_node.proxied_port}")) as kafka,
        kafka.admin() as admin,
    ):
        (broker,) = admin._manager.cluster.brokers()
    assert broker.port == kafka_node.proxy_port


def test_a_paused_broker_answers_when_it_goes_on(
    kafka: Kafka, kafka_node: Node, topic: str
) -> None:
    kafka_node.pause()
    late = Thread(target=kafka.produce, args=(topic, records(0)))
    late.start()
    late.join(timeout=0.5)
    assert late.is_alive()
    kafka_node.resume()
    late.join()
    assert values(kafka, topic) == NUMBERS


@pytest.mark.slow
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_broker_that_ended_goes_on_with_what_it_had(
    kafka: Kafka, kafka_node: Node, topic: str, end: str
) -> None:
    kafka.produce(topic, records(0))
    getattr(kafka_node, end)()
    assert not kafka_node.running
    kafka_node.start()
    kafka.produce(topic, records(1))
    assert values(kafka, topic) == NUMBERS * 2


def test_a_broker_outlives_the_thread_that_started_it(kafka_node: Node) -> None:
    thread = Thread(target=kafka_node.restart)
    thread.start()
    thread.join()
    assert kafka_node.kafka.brokers() == {kafka_node.number}


@pytest.mark.usefixtures("kafka_node")
def test_a_broker_does_not_outlive_the_tests(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TESTS_THAT_HANG, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as tests:
        assert tests.stdout is not None
        pid = int(tests.stdout.readline())
        assert runs(pid)
        tests.kill()
    wait_until(lambda: not runs(pid), "the broker to end")


@pytest.mark.slow
def test_three_brokers_go_on_without_one(
    kafka_cluster: Cluster, topic_names: Iterator[str]
) -> None:
    topic = next(topic_names)
    kafka_cluster.create_topic(topic, partitions=3)
    kafka_cluster.nodes[0].kill()
    kafka_cluster.produce(topic, [record for number in range(3) for record in records(number)])
    assert values(kafka_cluster, topic) == NUMBERS * 3


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"])
def test_a_user_logs_in(secure_kafka: SecureCluster, mechanism: str) -> None:
    user = Kafka(secure_kafka.bootstrap, **secure_kafka.login("worker", mechanism))
    assert user.brokers() == {1}


def test_a_client_certificate_logs_in(secure_kafka: SecureCluster) -> None:
    user = Kafka(secure_kafka.mutual_bootstrap, **secure_kafka.certificate_login())
    assert user.brokers() == {1}


@pytest.mark.parametrize(("setting", "value"), [("sasl_plain_password", "x"), ("ssl_cafile", None)])
def test_a_login_that_is_wrong_is_refused(
    secure_kafka: SecureCluster, setting: str, value: str | None
) -> None:
    login = {**secure_kafka.login("worker"), setting: value}
    with pytest.raises(KafkaTimeoutError):
        Kafka(secure_kafka.bootstrap, **login, bootstrap_timeout_ms=2000).brokers()


def test_a_user_may_do_what_was_allowed_and_not_denied(
    secure_kafka: SecureCluster, topic_names: Iterator[str]
) -> None:
    user, topic = next(topic_names), next(topic_names)
    secure_kafka.add_user(user)
    secure_kafka.create_topic(topic)
    with closing(Kafka(secure_kafka.bootstrap, **secure_kafka.login(user))) as theirs:
        with pytest.raises(TopicAuthorizationFailedError):
            theirs.produce(topic, records())
        secure_kafka.allow(user, "TOPIC", topic[:-1], "WRITE", "DESCRIBE", prefix=True)
        theirs.produce(topic, records())
        secure_kafka.deny(user, "TOPIC", topic, "WRITE")
        with pytest.raises(TopicAuthorizationFailedError):
            theirs.produce(topic, records())
        assert values(secure_kafka, topic) == NUMBERS
        secure_kafka.forget(user)
        secure_kafka.allow(user, "TOPIC", topic, "READ")
        assert values(theirs, topic) == NUMBERS


def test_a_client_certificate_is_a_users(
    secure_kafka: SecureCluster, topic_names: Iterator[str]
) -> None:
    topic = next(topic_names)
    secure_kafka.create_topic(topic)
    worker = Kafka(secure_kafka.mutual_bootstrap, **secure_kafka.certificate_login())
    with pytest.raises(TopicAuthorizationFailedError):
        worker.produce(topic, records())
    secure_kafka.allow("worker", "TOPIC", topic, "WRITE")
    worker.produce(topic, records())
    secure_kafka.forget("worker")
