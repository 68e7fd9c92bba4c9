"""Topics: whether they are there, what we may do, and what the loss of a broker would cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from kafka import errors as kafka_errors

from worker.check.findings import Finding, Level
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
_TOLD_NUMBERS: Final = 5


class Role(StrEnum):
    """What a topic holds."""

    INPUT = "events that are not labelled yet"
    OUTPUT = "acknowledged labels"
    DEAD_LETTERS = "acknowledged dead letters"
    POSITIONS = "positions of groups"
    TRANSACTIONS = "the state of transactions"


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as the brokers describe it; without configs where these may not be read."""

    role: Role
    name: str
    description: Description
    configs: Mapping[str, str]

    @property
    def error(self) -> type[kafka_errors.KafkaError]:
        """Return the error with which the brokers describe it."""
        error: type[kafka_errors.KafkaError] = kafka_errors.for_code(self.description["error_code"])
        return error

    @property
    def there(self) -> bool:
        """Return whether it is described at all."""
        return self.error is kafka_errors.NoError

    @property
    def partitions(self) -> Sequence[Description]:
        """Return its partitions, as they are described."""
        partitions: Sequence[Description] = self.description["partitions"]
        return partitions

    @property
    def replicas(self) -> int:
        """Return how many brokers hold each record, at least."""
        return min(len(partition["replica_nodes"]) for partition in self.partitions)

    @property
    def rights(self) -> Sequence[str] | None:
        """Return what we may do; None where the brokers do not tell."""
        rights: Sequence[str] | None = self.description["authorized_operations"]
        return rights

    @property
    def needed_right(self) -> str:
        """Return what the worker must be allowed."""
        return "READ" if self.role is Role.INPUT else "WRITE"

    @property
    def kept_ms(self) -> float:
        """Return for how long records are kept."""
        kept = self.number("retention.ms")
        if kept is None or kept < 0 or "delete" not in self.configs["cleanup.policy"]:
            return math.inf
        return kept

    def number(self, config: str) -> int | None:
        """Return a config that is a number; None where it may not be read."""
        return int(self.configs[config]) if config in self.configs else None

    def finding(self, level: Level, text: str) -> Finding:
        """Return a finding about this topic."""
        return Finding(level, f"topic {self.name}", text)


def own_topics(
    queries: BrokerQueries, settings: Settings
) -> Generator[Finding, None, Sequence[Topic]]:
    """Look at the topics of the worker; returns them.

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
    roles = {GROUPS_TOPIC: Role.POSITIONS}
    if kafka.guarantee == "exactly-once":
        roles[TRANSACTIONS_TOPIC] = Role.TRANSACTIONS
    for topic in _describe(queries, roles):
        if not topic.there:
            yield topic.finding(Level.SKIP, "its replication may not be seen")
            continue
        yield topic.finding(Level.OK, _facts(topic))
        yield from _availability(topic)
        yield from _durability(topic)


def _describe(queries: BrokerQueries, roles: Mapping[str, Role]) -> list[Topic]:
    def has_leaders(topics: Sequence[Description]) -> bool:
        return all(p["leader_id"] >= 0 for topic in topics for p in topic["partitions"])

    # One that was just made has leaders in a moment.
    described = queries.ask(lambda: queries.admin.describe_topics(list(roles)), has_leaders)
    descriptions = {description["name"]: description for description in described}
    configs = queries.configs("TOPIC", list(roles), _CONFIGS)
    return [Topic(role, name, descriptions[name], configs[name]) for name, role in roles.items()]


def _own_topic(topic: Topic, inputs: Sequence[Topic], settings: Settings) -> Iterator[Finding]:
    if not topic.there:
        yield topic.finding(Level.FAIL, _absence(topic, inputs, settings))
        return
    facts = _facts(topic)
    if topic.rights is not None and topic.needed_right in topic.rights:
        facts += ", may be read" if topic.role is Role.INPUT else ", may be written"
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
        advice = "allow DESCRIBE_CONFIGS on it, to have min.insync.replicas and sizes looked at"
        yield topic.finding(Level.SKIP, f"its settings may not be read; {advice}")


def _facts(topic: Topic) -> str:
    facts = [f"{len(topic.partitions)} partitions", f"replication {topic.replicas}"]
    told = [key for key in ("min.insync.replicas", MAX_MESSAGE_BYTES) if key in topic.configs]
    return ", ".join([*facts, *(f"{key} {topic.configs[key]}" for key in told)])


def _absence(topic: Topic, inputs: Sequence[Topic], settings: Settings) -> str:
    if topic.error is kafka_errors.TopicAuthorizationFailedError:
        return f"may not be seen, if it exists; allow {topic.needed_right} on it"
    if topic.error is kafka_errors.InvalidTopicError:
        return "is no name that a topic can have"
    if topic.error is not kafka_errors.UnknownTopicOrPartitionError:
        return f"cannot be described ({topic.error.__name__}); try again"
    partitions = max([settings.run.processes, *(len(other.partitions) for other in inputs)])
    return f"does not exist; create it with: worker create-topics --partitions {partitions}"


def _rights(topic: Topic) -> Iterator[Finding]:
    if topic.rights is None:
        yield topic.finding(Level.SKIP, "the brokers do not tell what we may do")
    elif topic.needed_right not in topic.rights:
        what = "read" if topic.role is Role.INPUT else "written"
        yield topic.finding(Level.FAIL, f"may not be {what}; allow {topic.needed_right} on it")


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
        problem = f"no leader for {_numbers(without)}; start the brokers that hold them"
        yield topic.finding(Level.FAIL, problem)
    if too_few:
        level = Level.WARN if topic.role is Role.INPUT else Level.FAIL
        problem = f"fewer replicas in sync than min.insync.replicas ({least}) for"
        advice = "nothing is written there; see whether brokers are down"
        yield topic.finding(level, f"{problem} {_numbers(too_few)}: {advice}")
    if behind:
        problem = f"not all replicas are in sync for {_numbers(behind)}"
        yield topic.finding(Level.WARN, f"{problem}; see whether brokers are down")


def _numbers(partitions: list[int]) -> str:
    told = ", ".join(str(number) for number in sorted(partitions)[:_TOLD_NUMBERS])
    more = len(partitions) - _TOLD_NUMBERS
    return f"partitions {told}" + (f" and {more} more" if more > 0 else "")


def _durability(topic: Topic) -> Iterator[Finding]:
    replicas, least = topic.replicas, topic.number("min.insync.replicas")
    if replicas == 1:
        problem = f"replication 1: the loss of one broker loses {topic.role}"
        yield topic.finding(Level.WARN, f"{problem}; have 3")
        return
    if least == 1:
        problem = f"min.insync.replicas 1: the loss of one broker can lose {topic.role}"
        yield topic.finding(Level.WARN, f"{problem}; have 2, and replication 3")
    elif least is not None and least >= replicas:
        problem = f"min.insync.replicas {least}, and replication {replicas}: the loss of one broker"
        yield topic.finding(Level.WARN, f"{problem} stops writing; have replication {least + 1}")
    if topic.configs.get("unclean.leader.election.enable") == "true":
        problem = f"unclean.leader.election.enable: the loss of one broker can lose {topic.role}"
        yield topic.finding(Level.WARN, f"{problem}; set it to false")


def _room_for_labels(topic: Topic, inputs: Sequence[Topic]) -> Iterator[Finding]:
    event, most = _largest_event(inputs), topic.number(MAX_MESSAGE_BYTES)
    if most is not None and most < event:
        problem = f"max.message.bytes {most}, and {event} for events: the label of a large one,"
        advice = "with its key, headers and kept fields, may become a dead letter"
        yield topic.finding(Level.WARN, f"{problem} {advice}; set it to {event}")


def _room_for_dead_letters(
    topic: Topic, inputs: Sequence[Topic], kafka: KafkaSettings
) -> Iterator[Finding]:
    """Compare sizes: where a dead letter is refused, the worker cannot go on.

    A compressed batch may hold an event that is larger than its topic's limit; that is not to be
    seen from here.
    """
    event = _largest_event(inputs)
    if not event:
        return
    needed = dead_letter_bytes(event, kafka)
    limits = {
        MAX_MESSAGE_BYTES: topic.number(MAX_MESSAGE_BYTES),
        "kafka.max_message_bytes": kafka.max_message_bytes,
    }
    for name, most in limits.items():
        if most is not None and most < needed:
            level = Level.FAIL if most < event else Level.WARN
            problem = (
                f"{name} {most}: the dead letter of an event of {event} bytes does not fit, and"
            )
            yield topic.finding(level, f"{problem} the worker would wait at it; set it to {needed}")


def _largest_event(inputs: Sequence[Topic]) -> int:
    return max((topic.number(MAX_MESSAGE_BYTES) or 0 for topic in inputs), default=0)


def _retention(topic: Topic, inputs: Sequence[Topic]) -> Iterator[Finding]:
    """Compare times: a label has the time of its event, and may be old when it is written."""
    events = max((other.kept_ms for other in inputs if other.configs), default=0)
    if topic.kept_ms < events and topic.configs.get("message.timestamp.type") == "CreateTime":
        problem = "keeps labels, by the time of their event, for less long than events are kept:"
        advice = "set retention.ms as for the input, or message.timestamp.type to LogAppendTime"
        yield topic.finding(
            Level.WARN, f"{problem} those of old events are deleted at once; {advice}"
        )


def _compaction(topic: Topic, kafka: KafkaSettings) -> Iterator[Finding]:
    if "compact" not in topic.configs.get("cleanup.policy", ""):
        return
    if topic.role is Role.OUTPUT and not kafka.pass_key:
        problem = "cleanup.policy compact refuses records without a key, which labels are as long"
        yield topic.finding(Level.FAIL, f"{problem} as kafka.pass_key is false; set it to delete")
        return
    problem = "cleanup.policy compact refuses records without a key, and keeps one of each key"
    yield topic.finding(Level.WARN, f"{problem}; set it to delete")


def _idle_processes(inputs: Sequence[Topic], settings: Settings) -> Iterator[Finding]:
    counts = [len(topic.partitions) for topic in inputs]
    # By ranges, the first partitions of all topics go to the same processes.
    used = sum(counts) if settings.kafka.assignment == "cooperative" else max(counts)
    if 0 < used < settings.run.processes:
        problem = f"{settings.run.processes}, and {used} partitions for them: some are idle"
        yield Finding(
            Level.WARN, "run.processes", f"{problem}; set it to {used}, or add partitions"
        )
