"""The proxy: a fault strikes exactly the frame it is meant for, exactly when it is meant to."""

from __future__ import annotations

import gc
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError

from .broker import PATIENCE
from .proxy import (
    HOST,
    Action,
    Api,
    BlackHole,
    Call,
    Cut,
    Delay,
    Fault,
    Hold,
    Moment,
    Proxy,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .broker import Kafka, Node

# ApiVersions in its first version: key, version, correlation id, client id; no body.
QUESTION = struct.pack(">ihhih3s", 13, Api.API_VERSIONS, 0, 7, 3, b"raw")

# Waits for a line of input, so that it can be killed by what is armed before.
PRODUCE_ONE = """
import sys
from kafka import KafkaProducer
input()
address, topic = sys.argv[1:]
KafkaProducer(bootstrap_servers=address).send(topic, b"text").get()
"""

MOMENTS = pytest.mark.parametrize("moment", Moment)
# How many of one record are written at which moment.
WRITTEN_AT = {Moment.BEFORE_REQUEST: 0, Moment.BEFORE_ANSWER: 1}


@pytest.fixture
def proxy(kafka_node: Node) -> Iterator[Proxy]:
    with Proxy(kafka_node.proxy_port, kafka_node.proxied_port) as proxy:
        yield proxy


@pytest.fixture
def address(kafka_node: Node) -> str:
    return f"{HOST}:{kafka_node.proxy_port}"


@pytest.fixture
def topic(kafka: Kafka, topic_names: Iterator[str]) -> str:
    name = next(topic_names)
    kafka.create_topic(name)
    # Only now is it sure to take records: a broker tells of a topic before it has it.
    assert written(kafka, name) == 0
    return name


@contextmanager
def producing(address: str, client_id: str = "test", retries: int = 0) -> Iterator[KafkaProducer]:
    """Give a producer that sends each record once, unless it is told to try again."""
    producer = KafkaProducer(
        bootstrap_servers=address,
        client_id=client_id,
        retries=retries,
        enable_idempotence=retries > 0,
        max_request_size=2**21,
    )
    with closing(producer):
        yield producer


def send(producer: KafkaProducer, topic: str, value: bytes = b"text") -> int:
    """Return the offset of a record, once the broker has acknowledged it."""
    offset: int = producer.send(topic, value).get(timeout=PATIENCE).offset
    return offset


def written(kafka: Kafka, topic: str) -> int:
    """Return how many records a topic has, asked past the proxy."""
    return len(kafka.read(topic))


def on_produce(moment: Moment, action: Action, **chosen: Any) -> Fault:
    return Fault(api=Api.PRODUCE, moment=moment, action=action, **chosen)


@contextmanager
def connected(kafka_node: Node) -> Iterator[socket.socket]:
    """Give a connection that the proxy serves."""
    with socket.create_connection((HOST, kafka_node.proxy_port), timeout=PATIENCE) as client:
        client.sendall(QUESTION)
        assert correlation_id(client) == 7
        yield client


def correlation_id(client: socket.socket) -> int:
    """Return which request the next answer is to."""
    with client.makefile("rb") as file:
        size, number = struct.unpack(">ii", file.read(8))
        assert len(file.read(size - 4)) == size - 4
    assert isinstance(number, int)
    return number


# Without a fault.


def test_traffic_passes_and_is_counted(
    proxy: Proxy, kafka: Kafka, address: str, topic: str
) -> None:
    with producing(address) as producer:
        for _ in range(3):
            send(producer, topic)
    assert written(kafka, topic) == 3
    assert proxy.seen[Api.PRODUCE] == 3


@pytest.mark.usefixtures("proxy")
def test_large_frames_pass(address: str, topic: str) -> None:
    values = [os.urandom(1_000_000) for _ in range(8)]
    with producing(address) as producer:
        for value in values:
            send(producer, topic, value)
    consumer = KafkaConsumer(
        topic,
        bootstrap_servers=address,
        auto_offset_reset="earliest",
        consumer_timeout_ms=PATIENCE * 1000,
    )
    with closing(consumer):
        assert [next(consumer).value for _ in values] == values


# What a fault does.


def test_a_request_that_is_cut_is_not_written(
    proxy: Proxy, kafka: Kafka, address: str, topic: str
) -> None:
    armed = proxy.arm(on_produce(Moment.BEFORE_REQUEST, Cut()))
    with producing(address) as producer, pytest.raises(KafkaError):
        send(producer, topic)
    assert armed.struck.is_set()
    assert armed.count == proxy.seen[Api.PRODUCE] == 1
    assert written(kafka, topic) == 0


def test_a_request_whose_answer_is_cut_is_written(
    proxy: Proxy, kafka: Kafka, address: str, topic: str
) -> None:
    armed = proxy.arm(on_produce(Moment.BEFORE_ANSWER, Cut()))
    with producing(address) as producer, pytest.raises(KafkaError):
        send(producer, topic)
    assert armed.struck.is_set()
    assert armed.count == proxy.seen[Api.PRODUCE] == 1
    assert written(kafka, topic) == 1


@MOMENTS
def test_a_delay_delays(proxy: Proxy, address: str, topic: str, moment: Moment) -> None:
    armed = proxy.arm(on_produce(moment, Delay(0.2)))
    with producing(address) as producer:
        began = time.monotonic()
        assert send(producer, topic) == 0
        assert time.monotonic() - began >= 0.2
    assert armed.struck.is_set()


@MOMENTS
def test_what_is_held_waits_for_its_release(
    proxy: Proxy, kafka: Kafka, address: str, topic: str, moment: Moment
) -> None:
    armed = proxy.arm(on_produce(moment, Hold()))
    with producing(address) as producer:
        future = producer.send(topic, b"text")
        assert armed.struck.wait(PATIENCE)
        assert written(kafka, topic) == WRITTEN_AT[moment]
        assert not future.is_done
        armed.release()
        assert future.get(timeout=PATIENCE).offset == 0


@MOMENTS
def test_a_black_hole_is_silent_until_it_is_healed(
    proxy: Proxy, kafka: Kafka, address: str, topic: str, moment: Moment
) -> None:
    armed = proxy.arm(on_produce(moment, BlackHole()))
    with producing(address, retries=5) as producer:
        future = producer.send(topic, b"text")
        assert armed.struck.wait(PATIENCE)
        assert written(kafka, topic) == WRITTEN_AT[moment]
        assert not future.is_done
        proxy.heal()
        assert future.get(timeout=PATIENCE).offset == 0
    # Sent twice, and written once: the producer numbers what it sends.
    assert proxy.seen[Api.PRODUCE] == 2
    assert written(kafka, topic) == 1


@MOMENTS
def test_a_call_strikes_at_its_moment(
    proxy: Proxy, kafka: Kafka, address: str, topic: str, moment: Moment
) -> None:
    found: list[int] = []
    armed = proxy.arm(on_produce(moment, Call(lambda: found.append(written(kafka, topic)))))
    with producing(address) as producer:
        assert send(producer, topic) == 0
    assert armed.struck.is_set()
    assert found == [WRITTEN_AT[moment]]


def test_a_call_may_act_on_the_proxy_itself(
    proxy: Proxy, kafka: Kafka, address: str, topic: str
) -> None:
    armed = proxy.arm(on_produce(Moment.BEFORE_ANSWER, Call(proxy.cut_all)))
    with producing(address) as producer, pytest.raises(KafkaError):
        send(producer, topic)
    assert armed.struck.wait(PATIENCE)
    assert written(kafka, topic) == 1


def test_the_request_of_a_client_that_was_killed_arrives_late(
    proxy: Proxy, kafka: Kafka, address: str, topic: str
) -> None:
    command = [sys.executable, "-c", PRODUCE_ONE, address, topic]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as client:
        held = proxy.arm(on_produce(Moment.BEFORE_REQUEST, Call(client.kill, then=Hold())))
        answered = proxy.arm(on_produce(Moment.BEFORE_ANSWER, Cut()))
        client.communicate(b"\n", timeout=PATIENCE)
    assert client.returncode == -signal.SIGKILL
    assert held.struck.wait(PATIENCE)
    assert written(kafka, topic) == 0
    held.release()
    assert answered.struck.wait(PATIENCE)
    assert written(kafka, topic) == 1


def test_what_goes_wrong_in_a_call_is_raised_at_the_end(kafka_node: Node) -> None:
    fault = Fault(api=Api.API_VERSIONS, moment=Moment.BEFORE_REQUEST, action=Call(lambda: 1 / 0))
    with ExitStack() as stack:
        proxy = stack.enter_context(Proxy(kafka_node.proxy_port, kafka_node.proxied_port))
        armed = proxy.arm(fault)
        with socket.create_connection((HOST, kafka_node.proxy_port), timeout=PATIENCE) as client:
            client.sendall(QUESTION)
            assert client.recv(1) == b""
        assert not armed.struck.is_set()
        with pytest.RaisesGroup(ZeroDivisionError):
            stack.close()


# Which frames a fault strikes.


def test_a_fault_skips_some_and_strikes_some(proxy: Proxy, address: str, topic: str) -> None:
    armed = proxy.arm(on_produce(Moment.BEFORE_REQUEST, Cut(), skip=1, times=2))
    with producing(address) as producer:
        assert send(producer, topic) == 0
        for _ in range(2):
            with pytest.raises(KafkaError):
                send(producer, topic)
        assert send(producer, topic) == 1
    assert armed.count == 2


def test_a_fault_strikes_the_clients_it_names(proxy: Proxy, address: str, topic: str) -> None:
    armed = proxy.arm(on_produce(Moment.BEFORE_ANSWER, Cut(), client_id="worker-"))
    with producing(address, "other") as other, producing(address, "worker-1") as worker:
        assert send(other, topic) == 0
        with pytest.raises(KafkaError):
            send(worker, topic)
        assert send(other, topic) == 2
    assert armed.count == 1


def test_a_fault_that_is_disarmed_strikes_no_more(proxy: Proxy, address: str, topic: str) -> None:
    armed = proxy.arm(on_produce(Moment.BEFORE_REQUEST, Cut(), times=2))
    with producing(address) as producer:
        with pytest.raises(KafkaError):
            send(producer, topic)
        armed.disarm()
        assert send(producer, topic) == 0
    assert armed.count == 1


def test_of_two_faults_the_first_strikes_first(proxy: Proxy, address: str, topic: str) -> None:
    first = proxy.arm(on_produce(Moment.BEFORE_REQUEST, Delay(0)))
    second = proxy.arm(on_produce(Moment.BEFORE_REQUEST, Delay(0)))
    with producing(address) as producer:
        send(producer, topic)
        assert (first.count, second.count) == (1, 0)
        send(producer, topic)
    assert (first.count, second.count) == (1, 1)


# The whole proxy.


def test_all_connections_are_cut_at_once(
    proxy: Proxy, kafka_node: Node, address: str, topic: str
) -> None:
    with producing(address, retries=5) as producer, connected(kafka_node) as client:
        assert send(producer, topic) == 0
        proxy.cut_all()
        assert client.recv(1) == b""
        assert send(producer, topic) == 1


def test_connections_are_refused_until_they_are_accepted(
    proxy: Proxy, kafka_node: Node, address: str, topic: str
) -> None:
    with producing(address, retries=5) as producer, connected(kafka_node) as client:
        assert send(producer, topic) == 0
        proxy.refuse()
        assert client.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, kafka_node.proxy_port))
        proxy.accept()
        assert send(producer, topic) == 1


def test_all_connections_are_silent_until_the_proxy_is_healed(
    proxy: Proxy, kafka_node: Node
) -> None:
    with connected(kafka_node) as old, socket.socket() as new:
        proxy.black_hole()
        new.settimeout(PATIENCE)
        new.connect((HOST, kafka_node.proxy_port))
        lost = proxy.arm(
            Fault(api=Api.API_VERSIONS, moment=Moment.BEFORE_REQUEST, action=Delay(0), skip=1)
        )
        for client in (old, new):
            client.sendall(QUESTION)
        assert lost.struck.wait(PATIENCE)
        proxy.heal()
        assert old.recv(1) == new.recv(1) == b""
    with connected(kafka_node):
        pass


def test_a_broker_that_is_gone_cuts_its_clients(kafka_node: Node) -> None:
    with socket.socket() as nobody:
        nobody.bind((HOST, 0))  # It does not listen.
        with (
            Proxy(kafka_node.proxy_port, nobody.getsockname()[1]),
            socket.create_connection((HOST, kafka_node.proxy_port), timeout=PATIENCE) as client,
        ):
            assert client.recv(1) == b""


def test_half_a_request_is_not_sent_on(proxy: Proxy, kafka_node: Node) -> None:
    with connected(kafka_node) as client:
        client.sendall(QUESTION[:-1])
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    assert proxy.seen[Api.API_VERSIONS] == 1


def test_connections_that_come_while_it_closes_are_closed_with_it(kafka_node: Node) -> None:
    address = (HOST, kafka_node.proxy_port)
    over = threading.Event()

    def connect_again_and_again() -> None:
        while not over.is_set():
            with suppress(ConnectionError), socket.create_connection(address):
                pass

    visitor = threading.Thread(target=connect_again_and_again)
    with ExitStack() as stack:
        stack.callback(visitor.join)
        stack.callback(over.set)
        visitor.start()
        for _ in range(20):
            with (
                Proxy(kafka_node.proxy_port, kafka_node.proxied_port),
                socket.create_connection(address),
            ):
                pass
    gc.collect()  # Which warns of each connection that is still open, and a warning fails the test.
