"""Looks at topics: whether they exist, what we may do, and what the loss of a broker would cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from kafka import errors as kafka_errors

from worker.check.findings import Finding, Level
from worker.terminal.sentences import counted
from worker.transports.kafka.sizes import MAX_MESSAGE_BYTES, dead_letter_bytes

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from worker.settings.schema import KafkaSettings, Settings
    from worker.transports.kafka.admin import BrokerQueries

    # What the admin client returns.
    Description: TypeAlias = Mapping[str, Any]

GROUPS_TOPIC: Final = "__consumer_offsets"
TRANSACTIONS_TOPIC: Final = "__transaction_state"
_CONFIGS: Final = [
    "cleanup.policy",
    MAX_MESSAGE_BYTES,
    "message.timestamp.type",
    "min.insync.replicas",
    "retention.ms",
    "unclean.leader.election.enable",
]
_LISTED_PARTITIONS: Final = 5


class Role(StrEnum):
    """What a topic is for; the value says what it holds, as part of a sentence."""

    INPUT = "events that are not labelled yet"
    OUTPUT = "acknowledged labels"
    DEAD_LETTERS = "acknowledged dead letters"
    OFFSETS = "committed offsets of groups"
    TRANSACTIONS = "the state of transactions"


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as the brokers describe it; `configs` is empty where they may not be read."""

    role: Role
    name: str
    description: Description
    configs: Mapping[str, str]

    @property
    def error(self) -> type[kafka_errors.KafkaError]:
        """Return the error in the description; `NoError` where there is none."""
        error: type[kafka_errors.KafkaError] = kafka_errors.for_code(self.description["error_code"])
        return error

    @property
    def visible(self) -> bool:
        """Return whether the topic exists and may be seen."""
        return self.error is kafka_errors.NoError

    @property
    def partitions(self) -> Sequence[Description]:
        """Return the descriptions of its partitions."""
        partitions: Sequence[Description] = self.description["partitions"]
        return partitions

    @property
    def replicas(self) -> int:
        """Return the smallest number of brokers that hold a record."""
        return min(len(partition["replica_nodes"]) for partition in self.partitions)

    @property
    def rights(self) -> Sequence[str] | None:
        """Return what the worker may do; None where the brokers do not say."""
        rights: Sequence[str] | None = self.description["authorized_operations"]
        return rights

    @property
    def needed_right(self) -> str:
        """Return the right that the worker needs."""
        return "READ" if self.role is Role.INPUT else "WRITE"

    @property
    def retention_ms(self) -> float:
        """Return for how long records are kept; infinite where time deletes none."""
        retention = self.number("retention.ms")
        if retention is None or retention < 0 or "delete" not in self.configs["cleanup.policy"]:
            return math.inf
        return retention

    def number(self, config: str) -> int | None:
        """Return the value of a config that is a number; None where it may not be read."""
        return int(self.configs[config]) if config in self.configs else None

    def finding(self, level: Level, text: str) -> Finding:
        """Return a finding about this topic."""
        return Finding(level, f"topic {self.name}", text)


def own_topics(
    queries: BrokerQueries, settings: Settings
) -> Generator[Finding, None, Sequence[Topic]]:
    """Look at the topics that the worker reads and writes, and return them.

    Raises:
        KafkaError: the brokers do not answer.

    """
    kafka = settings.kafka
    roles = dict.fromkeys(kafka.input_topics, Role.INPUT)
    roles |= {kafka.output_topic: Role.OUTPUT, kafka.dead_letter_topic: Role.DEAD_LETTERS}
    topics = _describe(queries, roles)
    inputs = [topic for topic in topics if topic.role is Role.INPUT]
    for topic in topics:
        yield from _own_topic(topic, inputs, settings)
    yield from _idle_processes(inputs, settings)
    return topics


def internal_topics(queries: BrokerQueries, kafka: KafkaSettings) -> Iterator[Finding]:
    """Look at the topics in which Kafka keeps its own state.

    Raises:
        KafkaError: the brokers do not answer.

    """
    roles = {GROUPS_TOPIC: Role.OFFSETS}
    if kafka.guarantee == "exactly-once":
        roles[TRANSACTIONS_TOPIC] = Role.TRANSACTIONS
    for topic in _describe(queries, roles):
        if not topic.visible:
            yield topic.finding(Level.SKIP, "the worker may not see its replication")
            continue
        yield topic.finding(Level.OK, _facts(topic))
        yield from _availability(topic)
        yield from _durability(topic)


def _describe(queries: BrokerQueries, roles: Mapping[str, Role]) -> list[Topic]:
    def has_leaders(topics: Sequence[Description]) -> bool:
        return all(p["leader_id"] >= 0 for topic in topics for p in topic["partitions"])

    # A topic that was just created has leaders in a moment.
    described = queries.ask(lambda: queries.admin.describe_topics(list(roles)), has_leaders)
    descriptions = {description["name"]: description for description in described}
    configs = queries.configs("TOPIC", list(roles), _CONFIGS)
    return [Topic(role, name, descriptions[name], configs[name]) for name, role in roles.items()]


def _own_topic(topic: Topic, inputs: Sequence[Topic], settings: Settings) -> Iterator[Finding]:
    if not topic.visible:
        yield topic.finding(Level.FAIL, _absence(topic, inputs, settings))
        return
    facts = _facts(topic)
    if topic.rights is not None and topic.needed_right in topic.rights:
        facts += f"; the worker may {_verb(topic)} it"
    yield topic.finding(Level.OK, facts)
    yield from _rights(topic)
    yield from _availability(topic)
    yield from _durability(topic)
    if topic.role is Role.OUTPUT:
        yield from _room_for_labels(topic, inputs)
        yield from _retention(topic, inputs)
    if topic.role is Role.DEAD_LETTERS:
        yield from _room_for_dead_letters(topic, inputs, settings.kafka)
    if topic.role is not Role.INPUT:
        yield from _compaction(topic, settings.kafka)
    if not topic.configs:
        advice = "allow DESCRIBE_CONFIGS on it to have min.insync.replicas and sizes looked at"
        yield topic.finding(Level.SKIP, f"the worker may not read its settings; {advice}")


def _facts(topic: Topic) -> str:
    facts = f"it has {counted(len(topic.partitions), 'partition')} and replication {topic.replicas}"
    known = [key for key in ("min.insync.replicas", MAX_MESSAGE_BYTES) if key in topic.configs]
    return "; ".join([facts, *(f"{key} is {topic.configs[key]}" for key in known)])


def _verb(topic: Topic) -> str:
    return "read" if topic.role is Role.INPUT else "write"


def _absence(topic: Topic, inputs: Sequence[Topic], settings: Settings) -> str:
    if topic.error is kafka_errors.TopicAuthorizationFailedError:
        right = topic.needed_right
        return f"the worker may not see whether it exists; allow {right} on it"
    if topic.error is kafka_errors.InvalidTopicError:
        return "no topic can have this name"
    if topic.error is not kafka_errors.UnknownTopicOrPartitionError:
        return f"the brokers cannot describe it ({topic.error.__name__}); try again"
    partitions = max([settings.run.processes, *(len(other.partitions) for other in inputs)])
    return f"it does not exist; create it with: worker create-topics --partitions {partitions}"


def _rights(topic: Topic) -> Iterator[Finding]:
    if topic.rights is None:
        yield topic.finding(Level.SKIP, "the brokers do not say what the worker may do")
    elif topic.needed_right not in topic.rights:
        problem = f"the worker may not {_verb(topic)} it"
        yield topic.finding(Level.FAIL, f"{problem}; allow {topic.needed_right} on it")


def _availability(topic: Topic) -> Iterator[Finding]:
    without, too_few, behind = [], [], []
    least = topic.number("min.insync.replicas") or 1
    for partition in topic.partitions:
        number, in_sync = partition["partition_index"], len(partition["isr_nodes"])
        if partition["leader_id"] < 0:
            without.append(number)
        elif in_sync < least:
            too_few.append(number)
        elif in_sync < len(partition["replica_nodes"]):
            behind.append(number)
    if without:
        problem = f"there is no leader for {_listed(without)}"
        yield topic.finding(Level.FAIL, f"{problem}; start the brokers that hold its replicas")
    if too_few:
        level = Level.WARN if topic.role is Role.INPUT else Level.FAIL
        problem = f"fewer replicas than min.insync.replicas ({least}) are in sync for"
        advice = "so nothing can be written there; see whether brokers are down"
        yield topic.finding(level, f"{problem} {_listed(too_few)}, {advice}")
    if behind:
        problem = f"not all replicas are in sync for {_listed(behind)}"
        yield topic.finding(Level.WARN, f"{problem}; see whether brokers are down")


def _listed(partitions: list[int]) -> str:
    noun = "partition" if len(partitions) == 1 else "partitions"
    first = ", ".join(str(number) for number in sorted(partitions)[:_LISTED_PARTITIONS])
    more = len(partitions) - _LISTED_PARTITIONS
    return f"{noun} {first}" + (f" and {more} more" if more > 0 else "")


def _durability(topic: Topic) -> Iterator[Finding]:
    replicas, least = topic.replicas, topic.number("min.insync.replicas")
    if replicas == 1:
        problem = f"its replication is 1, so the loss of one broker loses {topic.role}"
        yield topic.finding(Level.WARN, f"{problem}; raise it to 3")
        return
    if least == 1:
        problem = f"min.insync.replicas is 1, so the loss of one broker can lose {topic.role}"
        yield topic.finding(Level.WARN, f"{problem}; set it to 2, and the replication to 3")
    elif least is not None and least >= replicas:
        problem = f"min.insync.replicas is {least} and the replication is {replicas}"
        risk = f"so the loss of one broker stops writing; raise the replication to {least + 1}"
        yield topic.finding(Level.WARN, f"{problem}, {risk}")
    if topic.configs.get("unclean.leader.election.enable") == "true":
        problem = "unclean.leader.election.enable is true"
        risk = f"so the loss of one broker can lose {topic.role}"
        yield topic.finding(Level.WARN, f"{problem}, {risk}; set it to false")


def _room_for_labels(topic: Topic, inputs: Sequence[Topic]) -> Iterator[Finding]:
    event, limit = _largest_event(inputs), topic.number(MAX_MESSAGE_BYTES)
    if limit is not None and limit < event:
        problem = f"max.message.bytes is {limit}, but {event} for events"
        risk = "so a large event, whose label has its key, headers and kept fields, may become a"
        yield topic.finding(Level.WARN, f"{problem}, {risk} dead letter; set it to {event}")


def _room_for_dead_letters(
    topic: Topic, inputs: Sequence[Topic], kafka: KafkaSettings
) -> Iterator[Finding]:
    """Compare sizes: where a dead letter does not fit, it carries nothing of its event.

    A compressed record batch may hold an event that is larger than the limit of its topic, which
    cannot be seen from here.
    """
    event = _largest_event(inputs)
    if not event:
        return
    needed = dead_letter_bytes(event, kafka)
    limits = {
        MAX_MESSAGE_BYTES: topic.number(MAX_MESSAGE_BYTES),
        "kafka.max_message_bytes": kafka.max_message_bytes,
    }
    for name, limit in limits.items():
        if limit is not None and limit < needed:
            problem = (
                f"{name} is {limit}: the dead letter of an event of {event} bytes does not fit"
            )
            risk = "so it would not carry it"
            yield topic.finding(Level.WARN, f"{problem}, {risk}; set it to {needed}")


def _largest_event(inputs: Sequence[Topic]) -> int:
    return max((topic.number(MAX_MESSAGE_BYTES) or 0 for topic in inputs), default=0)


def _retention(topic: Topic, inputs: Sequence[Topic]) -> Iterator[Finding]:
    """Compare retention: a label has the time of its event, and may be old when it is written."""
    events = max((other.retention_ms for other in inputs if other.configs), default=0)
    created = topic.configs.get("message.timestamp.type") == "CreateTime"
    if created and topic.retention_ms < events:
        problem = "it keeps labels for a shorter time than events are kept, counted from the event"
        risk = "so labels of old events are deleted at once"
        advice = "set retention.ms as for the input, or message.timestamp.type to LogAppendTime"
        yield topic.finding(Level.WARN, f"{problem}, {risk}; {advice}")


def _compaction(topic: Topic, kafka: KafkaSettings) -> Iterator[Finding]:
    if "compact" not in topic.configs.get("cleanup.policy", ""):
        return
    if topic.role is Role.OUTPUT and not kafka.pass_key:
        problem = "cleanup.policy compact refuses records without a key, and labels have no key"
        yield topic.finding(
            Level.FAIL, f"{problem} while kafka.pass_key is false; set it to delete"
        )
        return
    problem = "cleanup.policy compact refuses records without a key, and keeps one record of a key"
    yield topic.finding(Level.WARN, f"{problem}; set it to delete")


def _idle_processes(inputs: Sequence[Topic], settings: Settings) -> Iterator[Finding]:
    counts = [len(topic.partitions) for topic in inputs]
    # The assignment by ranges gives the first partitions of all topics to the same processes.
    used = sum(counts) if settings.kafka.assignment == "cooperative" else max(counts)
    if 0 < used < settings.run.processes:
        problem = f"{settings.run.processes} processes would share {counted(used, 'partition')}"
        advice = f"set it to {used}, or add partitions"
        yield Finding(Level.WARN, "run.processes", f"{problem}, so some would be idle; {advice}")
