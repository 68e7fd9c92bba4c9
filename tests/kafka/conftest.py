"""Kafka for tests: one broker, one that asks for a login, and three of which any may go.

Each starts when a test first asks for it, and runs again when the next does, whatever was stopped,
killed or paused. `TEST_KAFKA` may name the bootstrap servers of a Kafka that runs already: it
takes the place of the one broker, and tests that must handle its process skip.
"""

from __future__ import annotations

import gc
import os
import threading
from contextlib import closing
from itertools import count
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

import pytest

from tests.kafka.broker import Cluster, Kafka, Node, SecureCluster, missing
from tests.kafka.proxy import Proxy
from tests.kafka.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from threading import Thread

# kafka-python leaves it to the garbage collector to close a connection that was refused.
LEFT_OPEN = pytest.mark.filterwarnings("ignore:unclosed <(socket|ssl):ResourceWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(LEFT_OPEN)


@pytest.fixture(autouse=True, scope="module")
def _nothing_is_left_to_other_tests() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
def _no_client_lives_on() -> Iterator[None]:
    """Fail a test that leaves a client of its own: it would search for brokers among other tests."""
    before = _client_threads()
    yield
    assert _client_threads() <= before


def _client_threads() -> set[Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("kafka-")}


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """Return Kafka of one broker."""
    if address := os.environ.get("TEST_KAFKA"):
        with closing(Kafka(address)) as kafka:
            yield kafka
        return
    _require_broker()
    with Cluster(tmp_path_factory.mktemp("kafka")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def secure_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureCluster]:
    """Return Kafka that asks for a login."""
    _require_broker()
    with SecureCluster(tmp_path_factory.mktemp("secure-kafka")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def kafka_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Return Kafka of three brokers, of which any may go."""
    _require_broker()
    with Cluster(tmp_path_factory.mktemp("kafka-cluster"), size=3) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _all_run_again(
    request: pytest.FixtureRequest,
    _no_client_lives_on: None,  # which looks when the clients here are closed
) -> Iterator[None]:
    names = {"kafka", "secure_kafka", "kafka_cluster"} & set(request.fixturenames)
    used = [request.getfixturevalue(name) for name in names]
    for each in used:
        if isinstance(each, Cluster):
            each.revive()
    yield
    for each in used:
        each.close()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Function, nextitem: pytest.Function | None) -> None:
    """Stop brokers that the next test does not need: idle, each takes a twentieth of a core."""
    for name in ("secure_kafka", "kafka_cluster"):
        brokers = item.funcargs.get(name)
        needed_again = nextitem is not None and name in nextitem.fixturenames
        if isinstance(brokers, Cluster) and not needed_again:
            brokers.stop()


@pytest.fixture
def kafka_node(kafka: Kafka) -> Node:
    """Return the process of the one broker."""
    if not isinstance(kafka, Cluster):
        pytest.skip("TEST_KAFKA names a Kafka that is not ours to handle")
    return kafka.node


@pytest.fixture
def topic_names() -> Iterator[str]:
    """Return names for topics, groups and users, none of which was ever used."""
    prefix = token_hex(4)
    return (f"test-{prefix}-{number}" for number in count())


def _require_broker() -> None:
    reason = missing()
    if reason is not None and os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def stage(kafka: Kafka, topic_names: Iterator[str], tmp_path: Path) -> Iterator[Stage]:
    """Return topics with workers to be started on them."""
    with Stage(kafka, topic_names, tmp_path) as stage:
        yield stage


@pytest.fixture
def proxied(
    kafka: Kafka, kafka_node: Node, topic_names: Iterator[str], tmp_path: Path
) -> Iterator[tuple[Stage, Proxy]]:
    """Return a stage whose workers come by way of a proxy."""
    bootstrap = f"127.0.0.1:{kafka_node.proxy_port}"
    with (
        Proxy(kafka_node.proxy_port, kafka_node.proxied_port) as proxy,
        Stage(kafka, topic_names, tmp_path, bootstrap=bootstrap) as stage,
    ):
        yield stage, proxy
