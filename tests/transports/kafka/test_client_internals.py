"""Names every private part of kafka-python that the worker relies on, and says which one is gone.

The parts are looked for in kafka-python's own classes: what a class or its bases define, and what
their methods set on `self`. So no broker is needed.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.cluster import ClusterMetadata
from kafka.consumer.fetcher import Fetcher
from kafka.consumer.subscription_state import SubscriptionState
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.coordinator.consumer import ConsumerCoordinator
from kafka.future import Future
from kafka.net.compat import KafkaNetClient
from kafka.net.connection import KafkaConnection
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.producer.future import FutureProduceResult
from kafka.producer.producer_batch import ProducerBatch
from kafka.producer.record_accumulator import IncompleteProducerBatches, RecordAccumulator
from kafka.producer.sender import Sender
from kafka.producer.transaction_manager import (
    TransactionalRequestResult,
    TransactionManager,
    TxnRequestHandler,
)
from kafka.record import MemoryRecordsBuilder
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

import worker
from worker.transports.kafka import client_internals

if TYPE_CHECKING:
    from collections.abc import Iterator

PARTS: dict[type, str] = {
    KafkaAdminClient: "_find_coordinator_id _manager",
    CooperativeStickyAssignor: "member_assignment metadata",
    KafkaConsumer: "_client _coordinator _fetcher _subscription",
    KafkaProducer: "_accumulator _closed _metadata _sender _transaction_manager",
    ClusterMetadata: "available_partitions_for_topic bootstrap_brokers",
    ConsumerCoordinator: (
        "_do_commit_offsets_async _offset_fetch_futures fetch_committed_offsets need_rejoin "
        "request_rejoin"
    ),
    DefaultRecordBatch: (
        "_buffer _pos base_offset compression_type first_timestamp has_producer_id "
        "is_control_batch last_offset last_offset_delta leader_epoch magic max_timestamp "
        "producer_id records_count timestamp_type validate_crc"
    ),
    DefaultRecordBatchBuilder: (
        "_batch_size _buffer _first_timestamp _last_offset _max_timestamp _num_records"
    ),
    Fetcher: (
        "PartitionRecords _append _paused_completed_fetches _paused_partition_records fetch_records "
        "fetched_records send_fetches"
    ),
    Fetcher.PartitionRecords: (
        "_consume_aborted_transactions_up_to _contains_abort_marker _is_batch_aborted "
        "_unpack_records aborted_producer_ids drain fetch_offset isolation_level leader_epoch "
        "next_fetch_offset record_iterator take"
    ),
    FutureProduceResult: "_latch is_done value wait",
    Future: "add_both exception",
    IncompleteProducerBatches: "add",
    KafkaConnection: "broker_version_data send_request",
    KafkaConnectionManager: "close cluster get_connection run send",
    KafkaNetClient: "close",
    MemoryRecordsBuilder: "_builder _next_offset",
    NetworkSelector: "close start",
    ProducerBatch: "_record_futures produce_future",
    RecordAccumulator: "_batches _incomplete _tp_lock config",
    Sender: "force_close join wakeup",
    SubscriptionState: "assigned_partitions",
    TransactionManager: (
        "_enqueue_request clear_in_flight_transactional_request_correlation_id begin_abort begin_commit is_transactional last_error maybe_add_partition_to_transaction "
        "send_offsets_to_transaction"
    ),
    TransactionalRequestResult: "wait",
    TxnRequestHandler: "fatal_error on_complete transaction_manager",
}
PUBLIC_MODULES = {
    "kafka",
    "kafka.admin",
    "kafka.errors",
    "kafka.partitioner",
    "kafka.record",
    "kafka.serializer",
    "kafka.structs",
}
PUBLIC_PACKAGES = ("kafka.coordinator.assignors.", "kafka.protocol.")
# They are what public calls return, but no public module has them.
PUBLIC_TYPES = {("kafka.consumer.fetcher", "ConsumerRecord"), ("kafka.future", "Future")}

SOURCE = Path(worker.__file__).parent
SEAM = Path(client_internals.__file__)
# Python documents these, in spite of their names.
DOCUMENTED = {"_current_frames", "_exit", "_replace"}
# The cache knows the table of diskcache, in a class of its own.
OF_DISKCACHE = {"_con", "_sql"}


@cache
def set_by_methods(kind: type) -> set[str]:
    """Return the attributes of `self` that the source of a class sets."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError):
        # It is written in C.
        return set()
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def parts_of(kind: type) -> set[str]:
    """Return what objects of a class have: what it and its bases define, and set on `self`."""
    return set(dir(kind)).union(*map(set_by_methods, kind.__mro__))


def missing() -> list[str]:
    """Return the parts that are relied on and gone, by their full names."""
    return [
        f"{kind.__module__}.{kind.__qualname__}.{name}"
        for kind, names in PARTS.items()
        for name in sorted(set(names.split()) - parts_of(kind))
    ]


def test_every_private_part_that_is_relied_on_is_there() -> None:
    assert missing() == []


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (ConsumerCoordinator, "_do_commit_offsets_async"),
        (Sender, "force_close"),
        (Fetcher.PartitionRecords, "take"),
    ],
)
def test_a_method_that_is_gone_is_named(
    kind: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(kind, name)
    assert missing() == [f"{kind.__module__}.{kind.__qualname__}.{name}"]


def test_an_attribute_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class KafkaConsumerOfTomorrow:
        def __init__(self) -> None:
            self._client = self._coordinator = self._subscription = None

    monkeypatch.setitem(PARTS, KafkaConsumerOfTomorrow, PARTS[KafkaConsumer])
    (name,) = missing()
    assert name.endswith("KafkaConsumerOfTomorrow._fetcher")


def owned(metadata: Any) -> dict[str, list[int]]:
    return {each.topic: list(each.partitions) for each in metadata.owned_partitions}


def test_a_member_that_has_lost_its_partitions_does_not_say_that_it_owns_them() -> None:
    assignor = client_internals.TruthfulAssignor()
    state = assignor.subscription = SubscriptionState()
    state.subscribe(["chat"])
    partitions = [TopicPartition("chat", number) for number in (0, 1)]
    state.assign_from_subscribed(partitions)
    assignor.member_assignment = partitions
    assert owned(assignor.metadata(["chat"])) == {"chat": [0, 1]}
    # The client does this where the coordinator no longer knows the member.
    state.assign_from_subscribed([])
    assert owned(assignor.metadata(["chat"])) == {}
    assert owned(client_internals.TruthfulAssignor().metadata(["chat"])) == {}


def private_accesses(path: Path) -> Iterator[str]:
    """Yield the names of private attributes of others than `self` and `cls` in a module."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if not isinstance(node, ast.Attribute):
            continue
        own = isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}
        if node.attr.startswith("_") and not node.attr.startswith("__") and not own:
            yield node.attr


def test_the_list_has_every_private_name_that_the_seam_uses() -> None:
    named = {name for names in PARTS.values() for name in names.split()}
    assert set(private_accesses(SEAM)) <= named
    private = {name for name in named if name.startswith("_")}
    used = SEAM.read_text(encoding="utf-8")
    assert {name for name in private if name not in used} == set()


def imports_of_kafka(path: Path) -> Iterator[tuple[str, str]]:
    """Yield module and name of what a module imports from kafka-python."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "kafka":
            yield from ((str(node.module), alias.name) for alias in node.names)
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.startswith("kafka."))


MODULES = sorted(set(SOURCE.rglob("*.py")) - {SEAM})


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_other_module_uses_private_parts(path: Path) -> None:
    assert set(private_accesses(path)) <= DOCUMENTED | OF_DISKCACHE
    private = {
        (module, name)
        for module, name in imports_of_kafka(path)
        if module not in PUBLIC_MODULES
        and not module.startswith(PUBLIC_PACKAGES)
        and (module, name) not in PUBLIC_TYPES
    }
    assert private == set()
