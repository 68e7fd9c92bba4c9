"""`worker dead-letters` with a real broker: what it shows, sends back once, and skips."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord

from tests.kafka.broker import PATIENCE, Cluster, free_port, wait_until
from tests.kafka.proxy import HOST, Api, Armed, BlackHole, Call, Cut, Fault, Hold, Moment, Proxy
from tests.kafka.raw import RawProducer
from tests.kafka.stage import header
from tests.record_batches import ZSTD, Raw, record_batch
from worker.cli.entry import main
from worker.events.decoding import decode_text
from worker.events.encoding import LabelEncoder
from worker.events.records import DeadLetter, ErrorKind, Skipped
from worker.settings.schema import KafkaSettings
from worker.transports.kafka.marks import Mark
from worker.transports.kafka.records import ProducerRecordEncoder, record_of
from worker.transports.kafka.transport import KafkaTransport, TransportLimits
from worker.transports.kafka.undecodable import UndecodableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.kafka.broker import Kafka, Node, Record, SecureCluster

Headers = list[tuple[str, bytes | None]]

PRIVATE = b"meet me at the old mill"
# This is more than one transaction sends.
MANY = 1100
LARGE = b"a" * 5000
# How far a record batch may expand.
MOST_BYTES = 2**20
LOST_ORDER = "each goes behind the records that came since, so the order within its key is lost"


class Killing(NamedTuple):
    """When a redrive is killed, and what becomes of the frame that is under way then."""

    api: Api
    moment: Moment
    then: Cut | Hold | None = None
    # A transaction has one request of each kind to the one broker.
    skip: int = 0


@dataclass
class Desk:
    """An input topic, the dead-letter topic, and the commands on them."""

    kafka: Kafka
    capture: pytest.CaptureFixture[str]
    chat: str
    dead: str
    group: str
    offsets: Iterator[int] = field(default_factory=count)
    err: str = ""
    armed: Armed | None = None

    @property
    def settings(self) -> KafkaSettings:
        return KafkaSettings(
            brokers=(self.kafka.bootstrap,),
            input_topics=(self.chat,),
            dead_letter_topic=self.dead,
            group=self.group,
            max_batch_bytes=MOST_BYTES,
        )

    @property
    def encoder(self) -> ProducerRecordEncoder:
        return ProducerRecordEncoder(
            LabelEncoder("model", "digest"), "labels", self.dead, self.group, max_bytes=2**21
        )

    @property
    def proxied(self) -> str:
        """Return the address of the brokers by way of the proxy."""
        assert isinstance(self.kafka, Cluster)
        return self.kafka.proxy_bootstrap

    def command(self, *arguments: str, brokers: str | None = None) -> list[str]:
        topics = ["--dead-letter-topic", self.dead, "--brokers", brokers or self.kafka.bootstrap]
        return ["dead-letters", *arguments, *topics]

    def run(self, *arguments: str, code: int = 0) -> list[str]:
        """Run a command; returns the lines that it prints."""
        assert main(self.command(*arguments)) == code
        output = self.capture.readouterr()
        self.err = output.err
        return output.out.splitlines()

    def redrive(self, *arguments: str) -> int:
        """Redrive without a question; returns how many records were sent."""
        last = self.run("redrive", "--yes", *arguments)[-1]
        return int(last.split()[0]) if last.endswith("sent back") else 0

    def start(
        self, *arguments: str, brokers: str | None = None, **settings: str
    ) -> subprocess.Popen[str]:
        """Redrive in a process of its own, by way of the proxy unless another address is given."""
        command = self.command("redrive", "--yes", *arguments, brokers=brokers or self.proxied)
        return subprocess.Popen(
            [sys.executable, "-m", "worker", *command],
            env={**os.environ, **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def redrive_until_killed(self, proxy: Proxy, fault: Killing, *arguments: str) -> str:
        """Redrive in a process that is killed at a moment; returns what it has printed."""
        started: Future[subprocess.Popen[str]] = Future()
        kill = Call(lambda: started.result().kill(), then=fault.then)
        armed = proxy.arm(Fault(api=fault.api, moment=fault.moment, action=kill, skip=fault.skip))
        self.armed = armed
        with self.start(*arguments) as process:
            started.set_result(process)
            output, _ = process.communicate(timeout=PATIENCE)
        assert armed.struck.is_set()
        assert process.returncode == -signal.SIGKILL
        assert "sent back" not in output.splitlines()[-1]
        return output

    def skip(self, partition: int, offset: int, *more: str, code: int = 0) -> list[str]:
        where = ["--input-topics", self.chat, "--group", self.group]
        return self.run("skip", self.chat, str(partition), str(offset), *where, *more, code=code)

    def letter(
        self,
        value: bytes | None,
        kind: ErrorKind = ErrorKind.NOT_JSON,
        time: int | None = None,
        **source: Any,
    ) -> Record:
        """Return the dead letter that a record of the input becomes."""
        fields: dict[str, Any] = dict.fromkeys(ConsumerRecord._fields)
        fields |= {"topic": self.chat, "partition": 0, "offset": next(self.offsets)}
        fields |= {"timestamp": 0, "key": b"key", "headers": [], "value": value}
        fields |= {"serialized_header_size": 0}
        return self.dies(ConsumerRecord(**fields | source), kind, time)

    def dies(
        self, source: ConsumerRecord, kind: ErrorKind = ErrorKind.NOT_JSON, time: int | None = None
    ) -> Record:
        letter = DeadLetter(record_of(source), kind, "the record is not valid JSON")
        message = self.encoder.encode(source, letter)
        return (message.key, message.value, message.headers, source.partition, time)

    def die(self, *letters: Record) -> None:
        now = milliseconds(datetime.now(UTC))
        batches = defaultdict(list)
        for key, value, headers, partition, time in letters:
            named = [
                (name.encode("utf-8", "surrogateescape"), content) for name, content in headers
            ]
            after = 0 if time is None else time - now
            batches[partition or 0].append(Raw(value, key, named, timestamp=after))
        with RawProducer(self.kafka) as producer:
            for partition, records in batches.items():
                producer.append(self.dead, partition, record_batch(records, timestamp=now))

    def read(self, topic: str) -> list[ConsumerRecord]:
        """Return all records of a topic, once no transaction is undecided there."""
        wait_until(lambda: self.kafka.is_settled(topic), "transactions")
        return self.kafka.read(topic)

    def sent(self) -> list[bytes]:
        """Return the values on the input topic, each partition in its order."""
        return [record.value for record in self.read(self.chat)]

    def settle(self) -> None:
        """End a transaction that a redrive has left open or undecided, as the next redrive would."""
        name = f"{self.dead}-redrive"
        with closing(KafkaProducer(**self.kafka.settings, transactional_id=name)) as producer:
            producer.init_transactions()
        self.read(self.dead)


@pytest.fixture
def desk(
    kafka: Kafka,
    topic_names: Iterator[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Desk:
    monkeypatch.setenv("WORKER_KAFKA__MAX_BATCH_BYTES", str(MOST_BYTES))
    desk = Desk(kafka, capsys, next(topic_names), next(topic_names), next(topic_names))
    monkeypatch.setenv("WORKER_KAFKA__INPUT_TOPICS", desk.chat)
    for topic in (desk.chat, desk.dead):
        kafka.create_topic(topic, partitions=2)
        # Only now is it sure to take records: a broker lists a topic before it has it.
        assert kafka.read(topic) == []
    return desk


@pytest.fixture
def proxy(kafka_node: Node) -> Iterator[Proxy]:
    with Proxy(kafka_node.proxy_port, kafka_node.proxied_port) as proxy:
        yield proxy


def milliseconds(when: datetime) -> int:
    return int(when.timestamp() * 1000)


def many(desk: Desk) -> list[bytes]:
    """Let many records die; returns their values."""
    values = [b"%d" % number for number in range(MANY)]
    desk.die(*(desk.letter(value, partition=n % 2) for n, value in enumerate(values)))
    return values


# What there is.


def test_letters_are_counted_by_kind_and_place_with_their_times(desk: Desk) -> None:
    noon = datetime(2025, 1, 31, 12, tzinfo=UTC)
    for minute, partition in enumerate([0, 1, 0]):
        time = milliseconds(noon + timedelta(minutes=minute))
        desk.die(desk.letter(PRIVATE, partition=partition, time=time))
    desk.die(desk.letter(PRIVATE, kind=ErrorKind.ENGINE, time=milliseconds(noon)))
    desk.die((None, PRIVATE, [], 0, None))
    *lines, last = desk.run("list")
    assert last == "1 other record of the topic was not written by this worker"
    assert [line.split() for line in lines] == [
        ["kind", "from", "partition", "letters", "first", "last"],
        ["engine", desk.chat, "0", "1", "2025-01-31T12:00:00Z", "2025-01-31T12:00:00Z"],
        ["not-json", desk.chat, "0", "2", "2025-01-31T12:00:00Z", "2025-01-31T12:02:00Z"],
        ["not-json", desk.chat, "1", "1", "2025-01-31T12:01:00Z", "2025-01-31T12:01:00Z"],
        [],
        ["4", "dead", "letters"],
    ]


def test_filters_choose_by_kind_place_and_time(desk: Desk) -> None:
    noon = datetime(2025, 1, 31, 12, tzinfo=UTC)
    for minute, kind in enumerate([ErrorKind.ENGINE, ErrorKind.NOT_JSON, ErrorKind.NOT_UTF8]):
        time = milliseconds(noon + timedelta(minutes=minute))
        desk.die(desk.letter(b"", kind=kind, partition=minute % 2, time=time))
    desk.die(desk.letter(b"", topic="other", time=milliseconds(noon)))

    def found(*flags: str) -> set[str]:
        return {line.split()[0] for line in desk.run("show", *flags)}

    first, second, third, other = (
        f"{desk.chat}-0-0",
        f"{desk.chat}-1-1",
        f"{desk.chat}-0-2",
        "other-0-3",
    )
    assert found() == {first, second, third, other}
    assert found("--kind", "engine", "--kind", "not-utf8") == {first, third}
    assert found("--topic", desk.chat) == {first, second, third}
    assert found("--topic", desk.chat, "--partition", "0") == {first, third}
    assert found("--offset", "3") == {other}
    assert found("--since", "2025-01-31T12:01Z") == {second, third}
    assert found("--since", "2025-01-31T12:01", "--until", "2025-01-31T13:02+01:00") == {second}


def test_payloads_are_shown_on_request_only(desk: Desk) -> None:
    desk.die(desk.letter(PRIVATE, key=b"user-7", headers=[("from", None)]))
    (line,) = desk.run("show")
    assert line.endswith("0 rounds  key 6 B, value 23 B, 1 header  the record is not valid JSON")
    for command in ("list", "show", "redrive", "redrive --yes"):
        output = "\n".join([*desk.run(*command.split()), desk.err])
        assert "old mill" not in output
        assert "user-7" not in output
    assert desk.run("show", "--payload")[1] == (
        '  {"key": "user-7", "headers": [["from", null]], "value": "meet me at the old mill"}'
    )


def test_what_cannot_be_decoded_among_the_letters_hides_none_of_them(desk: Desk) -> None:
    desk.die(desk.letter(b"1"))
    produce_batches(desk, [PRIVATE, b"bad"], topic=desk.dead)
    desk.die(desk.letter(b"2"))
    others = desk.run("list")[-1]
    assert others == "2 other records of the topic were not written by this worker"
    assert len(desk.run("show")) == 2
    assert desk.redrive() == 2
    assert sorted(desk.sent()) == [b"1", b"2"]


@pytest.mark.parametrize("command", ["list", "show", "redrive"])
def test_a_topic_that_does_not_exist_is_reported(desk: Desk, command: str) -> None:
    desk.dead = f"{desk.dead}-not"
    assert desk.run(command, code=2) == []
    assert f"the topic {desk.dead} does not exist" in desk.err


def test_brokers_that_are_away_are_reported(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_KAFKA__REQUEST_TIMEOUT_SECONDS", "1")
    address = f"{HOST}:{free_port()}"
    assert main(desk.command("list", brokers=address)) == 1
    complaint = desk.capture.readouterr().err
    assert complaint.startswith("worker: the brokers ")
    assert complaint.endswith("; `worker check` says more\n")


@pytest.mark.slow
def test_what_is_not_allowed_is_reported(
    secure_kafka: SecureCluster,
    topic_names: Iterator[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk(secure_kafka, capsys, next(topic_names), next(topic_names), next(topic_names))
    for topic in (desk.chat, desk.dead):
        secure_kafka.create_topic(topic)
    secure_kafka.produce(desk.dead, [desk.letter(b"1")])
    user = next(topic_names)
    secure_kafka.add_user(user)
    login = {
        "INPUT_TOPICS": desk.chat,
        "TLS__ENABLED": "true",
        "TLS__CA": str(secure_kafka.certificates.ca),
        "SASL__MECHANISM": "scram-sha-512",
        "SASL__USERNAME": user,
        "SASL__PASSWORD": secure_kafka.passwords[user],
    }
    for name, value in login.items():
        monkeypatch.setenv(f"WORKER_KAFKA__{name}", value)
    secure_kafka.allow(user, "TOPIC", desk.dead, "DESCRIBE")
    desk.run("list", code=1)
    assert desk.err == "worker: a topic may not be used; `worker check` says more\n"
    for topic in (desk.chat, desk.dead):
        secure_kafka.allow(user, "TOPIC", topic, "READ", "WRITE", "DESCRIBE")
    desk.run("redrive", "--yes", code=1)
    assert desk.err == "worker: the transactional id may not be used; `worker check` says more\n"
    secure_kafka.allow(user, "TRANSACTIONAL_ID", f"{desk.dead}-redrive", "WRITE", "DESCRIBE")
    assert desk.redrive() == 1


# What is sent back.


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(desk: Desk) -> None:
    desk.die(*(desk.letter(b"%d" % n) for n in range(3)))
    before = len(desk.kafka.read(desk.dead, "read_uncommitted"))
    assert desk.run("redrive") == [
        f"3 records to send back to {desk.chat}",
        LOST_ORDER,
        "nothing was done; to do it, run the same command with --yes",
    ]
    assert desk.kafka.read(desk.chat, "read_uncommitted") == []
    assert len(desk.kafka.read(desk.dead, "read_uncommitted")) == before


ORIGINALS: list[tuple[bytes | None, bytes | None, Headers]] = [
    (b"key", b"value", []),
    (b"", b"", [("a", b"")]),
    (None, b"\xff\x00", [("a", b"1"), ("a", b"2"), ("ü", b"\xff")]),
    (b"\xfe", None, [("worker-topic", b"elsewhere"), ("worker-nulls", b"[0]")]),
    (None, None, [("a", None), ("b", b""), ("c", None)]),
    (b"key", b"x" * 200_000, [("worker-redrive", b"1")]),
]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_records_go_back_as_they_were_and_count_their_rounds(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    monkeypatch.setenv("WORKER_KAFKA__COMPRESSION", compression)
    # The client would choose other partitions by their keys.
    desk.die(
        *(
            desk.letter(value, key=key, headers=headers, partition=1)
            for key, value, headers in ORIGINALS
        )
    )
    assert desk.run("redrive", "--yes") == [
        f"{len(ORIGINALS)} records to send back to {desk.chat}",
        LOST_ORDER,
        f"{len(ORIGINALS)} records sent back",
    ]
    sent = desk.read(desk.chat)
    rounds = ("worker-rounds", b"1")
    assert [(r.partition, r.key, r.value, list(r.headers)) for r in sent] == [
        (1, key, value, [*headers, rounds]) for key, value, headers in ORIGINALS
    ]


def test_a_record_whose_partition_is_gone_goes_by_its_key(desk: Desk) -> None:
    desk.kafka.produce(desk.chat, [(b"key", b"live", [], None, None)])
    letter = desk.letter(b"dead", partition=7)
    desk.die((*letter[:3], 0, None))
    assert desk.redrive() == 1
    live, dead = desk.read(desk.chat)
    assert live.partition == dead.partition


def test_each_record_goes_to_the_topic_it_came_from(desk: Desk, topic_names: Iterator[str]) -> None:
    other = next(topic_names)
    desk.kafka.create_topic(other)
    desk.die(desk.letter(b"1"), desk.letter(b"2", topic=other), desk.letter(b"3"))
    lines = desk.run("redrive", "--yes", "--input-topics", f"{desk.chat},{other}")
    assert f"2 records to send back to {desk.chat}" in lines
    assert f"1 record to send back to {other}" in lines
    assert desk.sent() == [b"1", b"3"]
    assert [record.value for record in desk.read(other)] == [b"2"]


def test_a_topic_that_only_a_letter_names_gets_nothing(
    desk: Desk, topic_names: Iterator[str]
) -> None:
    """Whoever may write to the dead-letter topic would write where the operator may."""
    other = next(topic_names)
    desk.kafka.create_topic(other)
    desk.die(desk.letter(b"1"), desk.letter(b"2", topic=other))
    assert desk.run("redrive", "--yes")[-2:] == [
        "1 dead letter was left out because their topics are not among kafka.input_topics; see --topic",
        "1 record sent back",
    ]
    assert desk.read(other) == []
    assert desk.redrive("--topic", other) == 1
    assert [record.value for record in desk.read(other)] == [b"2"]


def too_large(desk: Desk, offset: int, value: bytes = LARGE) -> Record:
    """Return the dead letter that does not carry an event at an offset."""
    return desk.letter(value, kind=ErrorKind.KEY_TOO_LARGE, offset=offset)


def test_an_event_that_its_letter_does_not_carry_is_sent_from_where_it_is(desk: Desk) -> None:
    desk.kafka.produce(desk.chat, [(b"k", LARGE, [("a", b"1")], 0, None)])
    desk.die(too_large(desk, 0))
    line, where = desk.run("show", "--payload")
    assert f"key 3 B, value {len(LARGE)} B, headers 0 B" in line
    assert f"--topic {desk.chat} --partition 0 --offset 0 --max-messages 1" in where
    assert desk.redrive() == 1
    _, again = desk.read(desk.chat)
    assert (again.key, again.value) == (b"k", LARGE)
    assert list(again.headers) == [("a", b"1"), ("worker-rounds", b"1")]


def test_an_event_that_is_no_longer_there_is_left_out(desk: Desk) -> None:
    desk.kafka.produce(desk.chat, [(None, b"another", [], 0, None)])
    desk.die(too_large(desk, 0), too_large(desk, 1), too_large(desk, 0, b"another"))
    elsewhere = desk.letter(LARGE, kind=ErrorKind.KEY_TOO_LARGE, offset=0, partition=7)
    desk.kafka.produce(desk.dead, [(*elsewhere[:3], 0, None)])
    assert desk.run("redrive", "--yes")[-2:] == [
        "3 dead letters were left out because events that they do not carry are gone from their topics",
        "1 record sent back",
    ]
    assert desk.sent() == [b"another", b"another"]


def test_a_topic_that_is_gone_is_reported_before_anything_is_sent(desk: Desk) -> None:
    desk.die(desk.letter(b"1"), desk.letter(b"2", topic="gone\x1b[2J"))
    gone = ["--topic", "gone\x1b[2J"]
    assert "1 record to send back to gone\\u001b[2J" in desk.run("redrive", "--yes", *gone, code=1)
    assert "the topic gone\\u001b[2J, which dead letters came from, does not exist" in desk.err
    assert desk.sent() == []
    assert desk.redrive("--topic", desk.chat) == 1


def test_what_has_no_bytes_or_is_no_letter_is_not_sent(desk: Desk) -> None:
    desk.die(desk.letter(None, kind=ErrorKind.UNDECODABLE), (b"k", b"v", [("a", b"b")], 0, None))
    assert desk.run("redrive", "--yes") == [
        "there is nothing to send back",
        "1 dead letter was left out because what cannot be decoded is no event",
    ]
    assert desk.sent() == []


def test_no_letters_are_no_error(desk: Desk) -> None:
    assert desk.run("list") == ["0 dead letters"]
    assert desk.run("show") == []
    assert desk.run("redrive", "--yes") == ["there is nothing to send back"]


# Once, unless it is asked for again.


def test_a_record_is_sent_a_second_time_only_on_request(desk: Desk) -> None:
    desk.die(desk.letter(b"1"), desk.letter(b"2"))
    assert desk.redrive() == 2
    desk.settle()
    assert desk.run("redrive", "--yes") == [
        "there is nothing to send back",
        "2 dead letters were sent back before; --again sends them once more",
    ]
    assert desk.redrive("--again") == 2
    assert desk.redrive("--again") == 2
    assert desk.redrive() == 0
    assert desk.sent() == [b"1", b"2"] * 3


def test_a_record_that_another_selection_has_sent_is_not_sent_again(desk: Desk) -> None:
    desk.die(*(desk.letter(b"%d" % n, partition=n % 2) for n in range(4)))
    assert desk.redrive("--partition", "1") == 2
    assert desk.redrive("--kind", "not-json", "--offset", "0") == 1
    assert desk.redrive() == 1
    assert desk.redrive("--max-rounds", "5") == 0
    assert sorted(desk.sent()) == [b"0", b"1", b"2", b"3"]


def test_later_letters_are_another_redrive(desk: Desk) -> None:
    desk.die(desk.letter(b"1"))
    assert desk.redrive() == 1
    desk.die(desk.letter(b"2"), desk.letter(b"3", partition=1))
    assert desk.redrive() == 2
    assert sorted(desk.sent()) == [b"1", b"2", b"3"]


def test_what_dies_again_and_again_goes_its_rounds_and_no_further(desk: Desk) -> None:
    desk.die(desk.letter(b"bad", headers=[("from", b"phone")]))
    rounds = []
    while desk.redrive("--max-rounds", "2"):
        again = desk.read(desk.chat)[-1]
        rounds.append(list(again.headers))
        desk.die(desk.dies(again))
    assert rounds == [[("from", b"phone"), ("worker-rounds", n)] for n in (b"1", b"2")]
    desk.settle()
    assert desk.run("redrive", "--max-rounds", "2") == [
        "there is nothing to send back",
        "2 dead letters were sent back before; --again sends them once more",
        "1 dead letter was left out because of --max-rounds",
    ]
    assert desk.redrive() == 1
    assert desk.redrive("--max-rounds", "2", "--again") == 2


def test_what_becomes_a_letter_meanwhile_is_not_chased(desk: Desk, proxy: Proxy) -> None:
    desk.die(desk.letter(b"bad"))
    sent_round = desk.letter(b"bad", headers=[("worker-rounds", b"1")])
    fault = Fault(
        api=Api.INIT_PRODUCER_ID,
        moment=Moment.BEFORE_ANSWER,
        action=Call(lambda: desk.die(sent_round)),
    )
    armed = proxy.arm(fault)
    with desk.start() as process:
        output, _ = process.communicate(timeout=PATIENCE)
    assert armed.struck.is_set()
    assert process.returncode == 0
    assert output.splitlines()[-1] == "1 record sent back"
    assert desk.sent() == [b"bad"]
    assert desk.redrive() == 1


# Killed, fenced, cut off.


@pytest.mark.parametrize(
    "killing",
    [
        Killing(Api.PRODUCE, Moment.BEFORE_REQUEST, Cut()),
        Killing(Api.PRODUCE, Moment.BEFORE_ANSWER, skip=1),
        Killing(Api.END_TXN, Moment.BEFORE_REQUEST, Cut(), skip=1),
        Killing(Api.END_TXN, Moment.BEFORE_REQUEST),
        Killing(Api.END_TXN, Moment.BEFORE_ANSWER, skip=1),
    ],
    ids=lambda killing: "-".join(str(part) for part in killing),
)
def test_killed_at_any_moment_the_same_command_continues(
    desk: Desk, proxy: Proxy, killing: Killing
) -> None:
    values = many(desk)
    desk.redrive_until_killed(proxy, killing)
    desk.redrive()
    assert sorted(desk.sent()) == sorted(values)
    assert desk.redrive() == 0


@pytest.mark.slow
def test_interrupted_it_leaves_no_transaction_open(desk: Desk, proxy: Proxy) -> None:
    values = many(desk)
    started: Future[subprocess.Popen[str]] = Future()
    interrupt = Call(lambda: started.result().send_signal(signal.SIGINT))
    proxy.arm(Fault(api=Api.PRODUCE, moment=Moment.BEFORE_ANSWER, action=interrupt, skip=2))
    # Readers would wait for longer than this test does.
    with desk.start(WORKER_KAFKA__TRANSACTION_TIMEOUT_SECONDS="600") as process:
        started.set_result(process)
        _, complaint = process.communicate(timeout=PATIENCE)
    assert (process.returncode, complaint) == (130, "worker: interrupted\n")
    assert len(desk.sent()) < MANY
    desk.redrive()
    assert sorted(desk.sent()) == sorted(values)


@pytest.mark.slow
def test_a_commit_that_comes_late_changes_nothing(desk: Desk, proxy: Proxy) -> None:
    values = many(desk)
    answer = proxy.arm(Fault(api=Api.END_TXN, moment=Moment.BEFORE_ANSWER, action=Cut()))
    desk.redrive_until_killed(proxy, Killing(Api.END_TXN, Moment.BEFORE_REQUEST, Hold()))
    assert desk.redrive() == MANY
    assert desk.armed
    desk.armed.release()
    assert answer.struck.wait(PATIENCE)
    assert sorted(desk.sent()) == sorted(values)


def test_a_redrive_that_continues_keeps_its_selection(desk: Desk, proxy: Proxy) -> None:
    many(desk)
    desk.redrive_until_killed(proxy, Killing(Api.END_TXN, Moment.BEFORE_REQUEST, Cut(), skip=1))
    desk.settle()
    sent = len(desk.sent())
    assert 0 < sent < MANY
    desk.die(desk.letter(b"later"))
    lines = desk.run("redrive", "--yes")
    assert f"{MANY - sent} records to send back to {desk.chat}" in lines
    later = "1 dead letter was left to the next redrive, because this one continues an earlier one"
    assert later in lines
    assert lines[-1] == f"{MANY - sent} records sent back"
    assert b"later" not in desk.sent()
    assert desk.redrive() == 1


@pytest.mark.slow
def test_killed_a_redrive_that_sends_again_continues_too(desk: Desk, proxy: Proxy) -> None:
    values = many(desk)
    assert desk.redrive() == MANY
    desk.redrive_until_killed(proxy, Killing(Api.END_TXN, Moment.BEFORE_ANSWER), "--again")
    desk.settle()
    sent = len(desk.sent()) - MANY
    assert 0 < sent < MANY
    assert desk.redrive("--again") == MANY - sent
    assert sorted(desk.sent()) == sorted(values * 2)


def test_a_second_redrive_ends_the_first(desk: Desk, proxy: Proxy) -> None:
    values = many(desk)
    held = proxy.arm(Fault(api=Api.END_TXN, moment=Moment.BEFORE_REQUEST, action=Hold(), skip=1))
    patience = {
        f"WORKER_KAFKA__{what}_TIMEOUT_SECONDS": "60" for what in ("REQUEST", "TRANSACTION")
    }
    with desk.start(**patience) as first:
        assert held.struck.wait(PATIENCE)
        desk.redrive()
        held.release()
        _, complaint = first.communicate(timeout=PATIENCE)
    assert first.returncode == 1
    assert f"another redrive of {desk.dead} has begun" in complaint
    assert "run the same command again: it continues" in complaint
    assert sorted(desk.sent()) == sorted(values)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("api", "skip", "words"),
    [
        (Api.INIT_PRODUCER_ID, 0, "the brokers do not answer: "),
        (Api.PRODUCE, 2, "the brokers do not acknowledge records in time; "),
        (Api.END_TXN, 0, "the brokers do not answer: "),
    ],
)
def test_what_got_no_answer_is_looked_up_by_the_next_run(
    desk: Desk, proxy: Proxy, api: Api, skip: int, words: str
) -> None:
    values = many(desk)
    armed = proxy.arm(Fault(api=api, moment=Moment.BEFORE_ANSWER, action=BlackHole(), skip=skip))
    limits = {
        "WORKER_KAFKA__TRANSACTION_TIMEOUT_SECONDS": "6",
        "WORKER_KAFKA__DEADLINE_SECONDS": "6",
        # The client gives up later than that.
        "WORKER_KAFKA__REQUEST_TIMEOUT_SECONDS": "60",
    }
    with desk.start(**limits) as process:
        _, complaint = process.communicate(timeout=PATIENCE)
    assert armed.struck.is_set()
    assert process.returncode == 1
    assert complaint.startswith(f"worker: {words}")
    proxy.heal()
    desk.redrive()
    assert sorted(desk.sent()) == sorted(values)


def test_receipts_behind_an_open_transaction_are_waited_for(desk: Desk, proxy: Proxy) -> None:
    """An exactly-once worker may hold back what readers of committed records see."""
    desk.die(desk.letter(b"1"))
    key, value, headers, _, _ = desk.letter(b"2")
    with closing(KafkaProducer(**desk.kafka.settings, transactional_id=desk.group)) as producer:
        producer.init_transactions()

        def write() -> None:
            producer.begin_transaction()
            producer.send(desk.dead, value, key, list(headers), partition=0).get(PATIENCE)

        proxy.arm(Fault(api=Api.PRODUCE, moment=Moment.BEFORE_REQUEST, action=Call(write)))
        with desk.start() as first:
            assert first.communicate(timeout=PATIENCE)[0].endswith("\n1 record sent back\n")
        with desk.start() as second:
            # It does not see yet that the first redrive sent, and must not send before it does.
            assert second.stdout is not None
            assert second.stdout.readline().startswith("1 record to send back")
            producer.commit_transaction()
            output, _ = second.communicate(timeout=PATIENCE)
    assert output.splitlines()[-1] == "0 records sent back"
    assert desk.sent() == [b"1"]


def test_a_transaction_that_stays_open_is_reported(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKER_KAFKA__DEADLINE_SECONDS", "5")
    desk.die(desk.letter(b"1"))
    producer = KafkaProducer(**desk.kafka.settings, transactional_id=desk.group)
    with closing(producer):
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(desk.dead, b"", partition=0).get(PATIENCE)
        desk.run("redrive", "--yes", code=1)
        assert "a transaction stays open there" in desk.err
        producer.abort_transaction()
    assert desk.redrive() == 1


def test_a_record_that_is_too_large_ends_it_and_its_transaction(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.die(desk.letter(b"small"), desk.letter(b"x" * 5000))
    monkeypatch.setenv("WORKER_KAFKA__MAX_MESSAGE_BYTES", "2000")
    desk.run("redrive", "--yes", code=1)
    assert f"the record of {desk.chat}-0-1 is larger than kafka.max_message_bytes" in desk.err
    assert desk.sent() == []
    monkeypatch.delenv("WORKER_KAFKA__MAX_MESSAGE_BYTES")
    assert desk.redrive() == 2


def test_a_topic_that_refuses_is_reported(desk: Desk, topic_names: Iterator[str]) -> None:
    narrow = next(topic_names)
    desk.kafka.create_topic(narrow, max_message_bytes="1000")
    desk.die(desk.letter(b"small", topic=narrow), desk.letter(b"x" * 5000, topic=narrow))
    desk.run("redrive", "--yes", "--topic", narrow, code=1)
    assert f"a record is larger than the topic {narrow} takes" in desk.err
    assert desk.read(narrow) == []


def test_what_a_topic_takes_only_in_smaller_batches_is_sent_in_those(
    desk: Desk, topic_names: Iterator[str]
) -> None:
    narrow = next(topic_names)
    desk.kafka.create_topic(narrow, partitions=2, max_message_bytes="3000")
    headers: Headers = [("\udcff not UTF-8", b"1"), ("null", None)]
    letters = [desk.letter(b"x" * 1000, topic=narrow, headers=headers) for _ in range(20)]
    key = b"key"
    null = [desk.letter(None, topic=narrow, key=key, headers=headers) for _ in range(2)]
    desk.die(*letters, *null)
    assert desk.redrive("--topic", narrow) == 22
    found = desk.read(narrow)
    assert [record.value for record in found] == [b"x" * 1000] * 20 + [None] * 2
    assert all(list(record.headers)[:2] == headers for record in found)


# Going past what cannot be decoded.


BAD = Raw(bytes(MOST_BYTES))


def produce_batches(desk: Desk, *batches: Sequence[bytes], topic: str = "") -> None:
    """Produce each list as one record batch, in which nothing from a bad record on can be decoded."""
    now = milliseconds(datetime.now(UTC))
    with RawProducer(desk.kafka) as producer:
        for batch in batches:
            records = [BAD if value == b"bad" else Raw(value) for value in batch]
            producer.append(topic or desk.chat, 1, record_batch(records, ZSTD, now))


def commit(desk: Desk, offset: int, mark: Mark = Mark(2)) -> None:  # noqa: B008 - the default is frozen, so calls can share it
    with closing(KafkaConsumer(**desk.kafka.settings, group_id=desk.group)) as consumer:
        consumer.commit({TopicPartition(desk.chat, 1): mark.at(offset)})


def committed(desk: Desk) -> tuple[int, Mark]:
    with closing(KafkaConsumer(**desk.kafka.settings, group_id=desk.group)) as consumer:
        found = consumer.committed(TopicPartition(desk.chat, 1), metadata=True)
    return found.offset, Mark.read(found.metadata)


def test_the_command_that_a_worker_names_lets_it_go_on(desk: Desk) -> None:
    produce_batches(desk, [b"1", b"2"], [b"bad"] * 3, [b"3"])
    seen: list[bytes] = []

    def work() -> None:
        limits = TransportLimits(max_bytes=1000, stuck_seconds=PATIENCE)
        transport = KafkaTransport(desk.settings, decode_text, desk.encoder, limits)
        try:
            for chunk in transport.chunks():
                seen.extend(source.value for source in chunk.sources)
                transport.complete(chunk, [Skipped(item.record) for item in chunk.items])
                if b"3" in seen:
                    return
        finally:
            transport.close(PATIENCE)

    with pytest.raises(UndecodableError) as stop:
        work()
    assert seen == [b"1", b"2"]
    words = shlex.split(str(stop.value).partition(" run: worker ")[2])
    assert words == ["dead-letters", "skip", desk.chat, "1", "2"]
    assert desk.skip(1, 2, "--yes") == [
        f"offsets 2 to 4 of partition 1 of {desk.chat} cannot be decoded",
        f"the group {desk.group} goes on at offset 5",
    ]
    work()
    assert seen == [b"1", b"2", b"3"]


def test_a_skip_leaves_a_letter_with_the_place_and_keeps_the_mark(desk: Desk) -> None:
    produce_batches(desk, [b"1"], [b"bad"] * 2)
    commit(desk, 1)
    desk.skip(1, 1, "--yes")
    assert committed(desk) == (3, Mark(2))
    (letter,) = desk.run("show")
    assert letter.startswith(f"{desk.chat}-1-1  undecodable  ")
    assert letter.endswith(f"its zstd data expand to more than {MOST_BYTES} bytes")
    assert desk.redrive() == 0
    (letter,) = desk.run("show", "--payload")[1:]
    assert "base64" in letter


def test_a_skip_leaves_a_letter_without_the_bytes_that_its_topic_does_not_take(
    desk: Desk, topic_names: Iterator[str]
) -> None:
    desk.dead = next(topic_names)
    desk.kafka.create_topic(desk.dead, max_message_bytes="2000")
    produce_batches(desk, [os.urandom(5000), b"bad"])
    commit(desk, 1)
    desk.skip(1, 1, "--yes")
    assert committed(desk)[0] == 2
    letter, advice = desk.run("show")
    assert letter.startswith(f"{desk.chat}-1-1  undecodable  ")
    assert "--partition 1 --offset 1 " in advice
    (record,) = desk.read(desk.dead)
    assert record.value == b""
    assert json.loads(header(record, "worker-omitted"))["value"] > 5000


def test_without_consent_nothing_is_skipped(desk: Desk) -> None:
    produce_batches(desk, [b"bad"])
    commit(desk, 0)
    assert desk.skip(1, 0)[1:] == ["nothing was done; to do it, run the same command with --yes"]
    assert committed(desk) == (0, Mark(2))
    assert desk.run("list") == ["0 dead letters"]


def test_what_can_be_decoded_between_two_bad_batches_is_not_skipped(desk: Desk) -> None:
    produce_batches(desk, [b"bad"] * 2, [b"good"], [b"bad"] * 4, [b"bad"])
    commit(desk, 0)
    desk.skip(1, 0, "--yes")
    assert committed(desk)[0] == 2
    commit(desk, 3)
    desk.skip(1, 3, "--yes")
    assert committed(desk)[0] == 8


def test_the_head_of_a_batch_that_can_be_decoded_is_not_skipped(desk: Desk) -> None:
    produce_batches(desk, [b"good", b"bad", b"lost"], [b"good"])
    commit(desk, 0)
    desk.skip(1, 1, "--yes", code=1)
    assert "offset 0, where the group" in desk.err
    commit(desk, 1)
    desk.skip(1, 1, "--yes")
    assert committed(desk)[0] == 3


def test_markers_of_transactions_before_the_batch_are_no_obstacle(desk: Desk) -> None:
    producer = KafkaProducer(**desk.kafka.settings, transactional_id=desk.group)
    with closing(producer):
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(desk.chat, b"1", partition=1).get(PATIENCE)
        producer.commit_transaction()
    # The marker is written after the answer.
    wait_until(lambda: desk.kafka.is_settled(desk.chat), "the marker")
    produce_batches(desk, [b"bad"] * 2)
    commit(desk, 1)
    desk.skip(1, 2, "--yes")
    assert committed(desk)[0] == 4


@pytest.mark.parametrize("offset", [0, 3])
def test_another_place_than_where_the_group_stands_is_refused(desk: Desk, offset: int) -> None:
    produce_batches(desk, [b"1"], [b"bad"] * 2, [b"2"])
    commit(desk, 1)
    desk.skip(1, offset, "--yes", code=1)
    assert f"offset {offset} is no part of it" in desk.err
    assert committed(desk)[0] == 1


@pytest.mark.parametrize("offset", [0, 2])
def test_what_can_be_decoded_or_is_not_there_is_not_skipped(desk: Desk, offset: int) -> None:
    produce_batches(desk, [b"1", b"2"])
    commit(desk, offset)
    desk.skip(1, offset, "--yes", code=1)
    assert "there is nothing to skip" in desk.err
    assert committed(desk)[0] == offset


@pytest.mark.slow
def test_a_group_with_members_is_left_alone(desk: Desk) -> None:
    produce_batches(desk, [b"bad"])
    commit(desk, 0)
    # A member that reads the bad record would end.
    member = KafkaConsumer(desk.dead, **desk.kafka.settings, group_id=desk.group)
    with closing(member):

        def joined() -> bool:
            # A poll that ends in the middle of a join may undo it.
            member.poll(timeout_ms=10_000)
            return bool(member.assignment())

        wait_until(joined, "the member to join")
        desk.skip(1, 0, "--yes", code=1)
    assert f"the group {desk.group} is not empty, but Stable; stop all its workers" in desk.err
    assert desk.run("list") == ["0 dead letters"]
    assert committed(desk)[0] == 0


def test_a_group_without_offsets_and_a_topic_it_does_not_read_are_reported(desk: Desk) -> None:
    desk.skip(1, 0, "--yes", code=1)
    assert f"the group {desk.group} has no offset for partition 1 of {desk.chat}" in desk.err
    desk.run("skip", "elsewhere", "0", "0", "--input-topics", desk.chat, code=2)
    assert "elsewhere is not among kafka.input_topics" in desk.err
