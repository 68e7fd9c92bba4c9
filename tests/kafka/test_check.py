"""`worker check` on real brokers: what is fine, what fails, what is at risk, and that nothing moves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka.errors import MessageSizeTooLargeError
from kafka.structs import OffsetAndMetadata, TopicPartition

from tests.kafka.broker import PATIENCE, Cluster, wait_until
from tests.kafka.conftest import _require_broker
from tests.kafka.proxy import Api, BlackHole, Fault, Moment, Proxy
from worker import cli
from worker.events.encoding import LabelEncoder
from worker.events.records import DeadLetter, ErrorKind
from worker.settings.schema import KafkaSettings
from worker.transports.kafka.clients import new_producer
from worker.transports.kafka.records import ProducerRecordEncoder, record_of
from worker.transports.kafka.sizes import dead_letter_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kafka.consumer.fetcher import ConsumerRecord

    from tests.kafka.broker import Kafka, Node, SecureCluster

EXACTLY_ONCE = pytest.mark.parametrize("guarantee", ["at-least-once", "exactly-once"])
EVENT_BYTES = 1048588  # Kafka's own default.
ROOM = {"max_message_bytes": str(2 * EVENT_BYTES)}


class Site:
    """Topics and a group of a test, and the command that looks at them."""

    def __init__(
        self,
        kafka: Kafka,
        names: Iterator[str],
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        self.kafka = kafka
        self.input, self.output, self.dead, self.group = (next(names) for _ in range(4))
        self.settings = {
            "KAFKA__BROKERS": kafka.bootstrap,
            "KAFKA__INPUT_TOPICS": self.input,
            "KAFKA__OUTPUT_TOPIC": self.output,
            "KAFKA__DEAD_LETTER_TOPIC": self.dead,
            "KAFKA__GROUP": self.group,
            "KAFKA__MAX_MESSAGE_BYTES": str(2**21),
        }
        self._monkeypatch = monkeypatch
        self._capfd = capfd
        self.user = ""
        self.output_text = ""
        self._lines: list[str] = []

    def create(self, **configs: str) -> None:
        """Create the topics that a worker needs; `configs` are for those of labels and dead letters."""
        self.kafka.create_topic(self.input, partitions=2)
        self.kafka.create_topic(self.output, partitions=2, **configs)
        self.kafka.create_topic(self.dead, partitions=1, **(ROOM | configs))

    def check(self, **settings: str) -> int:
        for name, value in (self.settings | settings).items():
            self._monkeypatch.setenv(f"WORKER_{name}", value)
        code = cli.main(["check"])
        self.output_text = self._capfd.readouterr().out
        self._lines = self.output_text.splitlines()
        return code

    def about(self, what: str, *levels: str) -> list[str]:
        """Return level and sentence of the lines about a subject; of `levels` alone where some are given."""
        cut = [line.split(f"  {what}: ", 1) for line in self._lines]
        found = [(parts[0].strip(), parts[1]) for parts in cut if len(parts) == 2]
        return [f"{level} {text}" for level, text in found if level in (levels or level)]

    def topic(self, name: str, *levels: str) -> list[str]:
        return self.about(f"topic {name}", *levels)

    def levels(self) -> set[str]:
        return {line.split()[0] for line in self._lines}


@pytest.fixture
def make_site(
    topic_names: Iterator[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Any:
    return lambda kafka: Site(kafka, topic_names, monkeypatch, capfd)


@pytest.fixture
def site(kafka: Kafka, make_site: Any) -> Site:
    site: Site = make_site(kafka)
    return site


@pytest.fixture
def cluster_site(kafka_cluster: Cluster, make_site: Any) -> Site:
    site: Site = make_site(kafka_cluster)
    return site


def create(kafka: Kafka, name: str, **topic: Any) -> None:
    """Create a topic with a replication or an assignment of its own."""
    kafka._ask(lambda admin: admin.create_topics({name: topic}, wait_for_metadata=True))


# Where all is well, and that it stays so.


@pytest.mark.slow
@EXACTLY_ONCE
def test_on_three_brokers_everything_can_be_fine(cluster_site: Site, guarantee: str) -> None:
    site = cluster_site
    site.create()
    assert site.check(KAFKA__GUARANTEE=guarantee) == 0
    assert site.levels() == {"ok"}, site.output_text
    (brokers,) = site.about("brokers")
    assert brokers.startswith("ok 3 brokers can be reached (127.0.0.1:")
    assert site.topic(site.input) == [
        (
            "ok it has 2 partitions and replication 3; min.insync.replicas is 2; max.message.bytes is "
            f"{EVENT_BYTES}; the worker may read it"
        ),
    ]
    assert site.topic("__consumer_offsets", "ok")
    assert bool(site.topic("__transaction_state", "ok")) == (guarantee == "exactly-once")


@pytest.mark.slow
def test_one_broker_is_a_risk_and_no_failure(site: Site) -> None:
    create(site.kafka, site.input, num_partitions=2, replication_factor=1)
    create(site.kafka, site.output, num_partitions=2, replication_factor=1)
    create(site.kafka, site.dead, num_partitions=1, replication_factor=1)
    site.check()
    risks = "warn its replication is 1, so the loss of one broker loses"
    assert site.topic(site.input, "warn") == [
        f"{risks} events that are not labelled yet; raise it to 3"
    ]
    assert site.topic(site.output, "warn") == [f"{risks} acknowledged labels; raise it to 3"]
    assert f"{risks} acknowledged dead letters; raise it to 3" in site.topic(site.dead, "warn")
    assert "fail" not in site.levels()


@EXACTLY_ONCE
def test_nothing_is_sent_and_a_running_group_and_transaction_go_on(
    site: Site, guarantee: str
) -> None:
    site.create()
    consumer = KafkaConsumer(
        site.input, group_id=site.group, enable_auto_commit=False, **site.kafka.settings
    )
    producer = KafkaProducer(transactional_id=site.group, **site.kafka.settings)
    try:
        producer.init_transactions()
        wait_until(lambda: consumer.poll(100) == {} and bool(consumer.assignment()), "the group")
        member = consumer.group_metadata()
        producer.begin_transaction()
        producer.send(site.output, b"label").get(PATIENCE)
        assert site.check(KAFKA__GUARANTEE=guarantee, KAFKA__TRANSACTIONAL_ID=site.group) == 0
        producer.commit_transaction()
        consumer.poll(100)
        assert consumer.group_metadata() == member
    finally:
        consumer.close()
        producer.close(PATIENCE)
    assert [label.value for label in site.kafka.read(site.output)] == [b"label"]
    assert site.kafka.read(site.input) == site.kafka.read(site.dead) == []
    assert site.kafka.committed(site.group, site.input) == {}


def test_it_says_where_a_group_begins(site: Site) -> None:
    site.create()
    site.check(KAFKA__START="latest")
    (new,) = site.about(f"group {site.group}")
    assert new == (
        "ok the worker may use it; it has no offsets yet, so it begins at the latest records"
    )
    commit(site.kafka, site.group, site.input)
    site.check()
    (known,) = site.about(f"group {site.group}")
    assert known == "ok the worker may use it; it continues at its committed offsets"


def commit(kafka: Kafka, group: str, topic: str) -> None:
    consumer = KafkaConsumer(group_id=group, enable_auto_commit=False, **kafka.settings)
    try:
        consumer.assign([TopicPartition(topic, 0)])
        consumer.commit({TopicPartition(topic, 0): OffsetAndMetadata(0, "", -1)})
    finally:
        consumer.close()


# Brokers.


@pytest.mark.slow
def test_a_broker_that_is_down_is_reported(kafka_cluster: Cluster, cluster_site: Site) -> None:
    site = cluster_site
    site.create()
    lone, gone = site.input + "-lone", kafka_cluster.nodes[2]
    create(site.kafka, lone, assignments={0: [gone.number]})
    create(site.kafka, lone + "-all", num_partitions=1, configs={"min.insync.replicas": "3"})
    gone.kill()
    others = {node.number for node in kafka_cluster.nodes[:2]}
    wait_until(lambda: kafka_cluster.nodes[0].kafka.brokers() == others, "the loss to be seen")
    code = site.check(KAFKA__INPUT_TOPICS=f"{site.input},{lone}", KAFKA__OUTPUT_TOPIC=lone + "-all")
    assert code == 1
    ok, away = site.about("brokers")
    assert ok.startswith("ok 2 brokers can be reached")
    assert away == f"warn {gone.address} cannot be reached: Connection refused"
    (behind,) = site.topic(site.input, "warn")
    assert behind.startswith("warn not all replicas are in sync for partitions 0, 1")
    (headless,) = site.topic(lone, "fail")
    assert headless.startswith("fail there is no leader for partition 0;")
    (too_few,) = site.topic(lone + "-all", "fail")
    assert too_few.startswith("fail fewer replicas than min.insync.replicas (3) are in sync for")


def test_an_address_that_the_brokers_give_must_be_reachable(site: Site, kafka_node: Node) -> None:
    """Clients that come to the listener PROXIED are sent to the proxy, which is not there."""
    proxied = f"127.0.0.1:{kafka_node.proxied_port}"
    assert site.check(KAFKA__BROKERS=proxied, KAFKA__REQUEST_TIMEOUT_SECONDS="4") == 1
    named = f"127.0.0.1:{kafka_node.proxy_port}"
    assert site.about("brokers", "fail")[0] == (
        f"fail {named} (an address that the brokers give out: see advertised.listeners) cannot be "
        "reached: Connection refused"
    )


@pytest.mark.parametrize("api", [Api.METADATA, Api.HEARTBEAT])
def test_brokers_that_stop_answering_end_it(site: Site, kafka_node: Node, api: Api) -> None:
    site.create()
    # The first question for metadata comes from the visit, the second from the admin client itself.
    fault = Fault(
        api=api,
        moment=Moment.BEFORE_ANSWER,
        action=BlackHole(),
        skip=2 if api is Api.METADATA else 0,
        times=1000,
    )
    with Proxy(kafka_node.proxy_port, kafka_node.proxied_port) as proxy:
        armed = proxy.arm(fault)
        code = site.check(
            KAFKA__BROKERS=f"127.0.0.1:{kafka_node.proxy_port}",
            KAFKA__REQUEST_TIMEOUT_SECONDS="4",
        )
    assert armed.struck.is_set()
    assert code == 1
    assert "; the rest of Kafka was not looked at: try again" in site.about("brokers", "fail")[0]
    assert site.about("model", "ok")


# Who we are to the brokers.


@pytest.fixture
def secure_site(secure_kafka: SecureCluster, make_site: Any, topic_names: Iterator[str]) -> Site:
    """Return a site whose user has no rights yet and can only log in."""
    site: Site = make_site(secure_kafka)
    site.user = next(topic_names)
    secure_kafka.add_user(site.user)
    site.settings |= {
        "KAFKA__TLS__ENABLED": "true",
        "KAFKA__TLS__CA": str(secure_kafka.certificates.ca),
        "KAFKA__SASL__MECHANISM": "scram-sha-512",
        "KAFKA__SASL__USERNAME": site.user,
        "KAFKA__SASL__PASSWORD": secure_kafka.passwords[site.user],
    }
    return site


def allow_all(kafka: SecureCluster, site: Site) -> None:
    """Give a user the rights that a worker needs, and no others."""
    kafka.allow(site.user, "TOPIC", site.input, "READ")
    kafka.allow(site.user, "TOPIC", site.output, "READ", "WRITE")
    kafka.allow(site.user, "TOPIC", site.dead, "WRITE")
    kafka.allow(site.user, "GROUP", site.group, "READ")
    kafka.allow(site.user, "TRANSACTIONAL_ID", f"{site.group}-", "WRITE", prefix=True)


@EXACTLY_ONCE
def test_the_rights_that_a_worker_needs_are_enough(
    secure_kafka: SecureCluster, secure_site: Site, guarantee: str
) -> None:
    site = secure_site
    site.create()
    allow_all(secure_kafka, site)
    assert site.check(KAFKA__GUARANTEE=guarantee) == 0, site.output_text
    assert site.about("credentials") == [f"ok {site.user} may log in by scram-sha-512, with TLS"]
    # What needs more rights to be seen is not looked at.
    assert site.topic(site.input, "skip")[0].startswith(
        "skip the worker may not read its settings; allow"
    )
    assert site.about("time limits", "skip")
    assert site.topic("__consumer_offsets", "skip")


@pytest.mark.parametrize("mechanism", ["plain", "scram-sha-256", "scram-sha-512"])
def test_a_wrong_password_is_reported_and_not_shown(secure_site: Site, mechanism: str) -> None:
    site = secure_site
    password = "not-" + site.settings["KAFKA__SASL__PASSWORD"]
    code = site.check(KAFKA__SASL__MECHANISM=mechanism, KAFKA__SASL__PASSWORD=password)
    assert code == 1
    (line,) = site.about("credentials")
    assert line.startswith("fail the brokers refuse the login; see kafka.sasl.username")
    assert site.about("brokers")[0].startswith("ok 1 broker can be reached")
    assert site.about("topics, rights", "skip")
    assert password not in site.output_text


def test_brokers_that_ask_for_no_login_are_reported(site: Site) -> None:
    login = {"KAFKA__SASL__USERNAME": "worker", "KAFKA__SASL__PASSWORD": "secret"}
    assert site.check(KAFKA__SASL__MECHANISM="plain", **login) == 1
    (line,) = site.about("credentials")
    assert line.startswith("fail the brokers ask for no login there")


# What the site has otherwise; empty variables are none.
NO_TLS = {"KAFKA__TLS__ENABLED": "false", "KAFKA__TLS__CA": ""}
NO_LOGIN = {
    "KAFKA__SASL__MECHANISM": "none",
    "KAFKA__SASL__USERNAME": "",
    "KAFKA__SASL__PASSWORD": "",
}


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (NO_TLS, "TLS (kafka.tls.enabled) or a login"),
        (NO_TLS | NO_LOGIN, "TLS (kafka.tls.enabled) or a login"),
        (
            NO_LOGIN,
            "a certificate (kafka.tls.certificate) or a login (kafka.sasl.mechanism)",
        ),
    ],
)
def test_what_brokers_may_ask_for_is_reported(
    secure_site: Site, settings: dict[str, str], wanted: str
) -> None:
    assert secure_site.check(**settings) == 1
    (line,) = secure_site.about("credentials")
    assert line.startswith(f"fail the brokers do not let us in: do they ask for {wanted}")


def test_a_certificate_can_be_the_login(secure_kafka: SecureCluster, secure_site: Site) -> None:
    site, certificates = secure_site, secure_kafka.certificates
    login = {
        **NO_LOGIN,
        "KAFKA__BROKERS": secure_kafka.mutual_bootstrap,
        "KAFKA__TLS__CERTIFICATE": str(certificates.client),
        "KAFKA__TLS__KEY": str(certificates.client_key),
    }
    site.check(**login)
    assert site.about("credentials") == ["ok the brokers take our certificate, with TLS"]


def test_a_certificate_that_is_not_trusted_is_reported(secure_site: Site) -> None:
    del secure_site.settings["KAFKA__TLS__CA"]
    assert secure_site.check() == 1
    (line,) = secure_site.about("brokers")
    assert line.endswith(" has a certificate that is not trusted here; see kafka.tls.ca")


# Rights.


@pytest.mark.parametrize(
    ("kind", "name", "operation", "about", "problem"),
    [
        ("TOPIC", "input", "READ", "topic {input}", "the worker may not read it; allow READ"),
        (
            "TOPIC",
            "input",
            "DESCRIBE",
            "topic {input}",
            "the worker may not see whether it exists; allow READ",
        ),
        ("TOPIC", "output", "WRITE", "topic {output}", "the worker may not write it; allow WRITE"),
        ("TOPIC", "dead", "WRITE", "topic {dead}", "the worker may not write it; allow WRITE"),
        ("TOPIC", "output", "READ", "topic {output}", "the worker may not read it, where a group"),
        ("GROUP", "group", "READ", "group {group}", "the worker may not use it; allow READ on it"),
        (
            "GROUP",
            "group",
            "DESCRIBE",
            "group {group}",
            "the worker may not use it; allow READ on it",
        ),
    ],
)
def test_each_right_that_is_missing_is_reported(  # noqa: PLR0913, PLR0917 - the parameters are the columns of a table
    secure_kafka: SecureCluster,
    secure_site: Site,
    kind: str,
    name: str,
    operation: str,
    about: str,
    problem: str,
) -> None:
    site = secure_site
    site.create()
    allow_all(secure_kafka, site)
    secure_kafka.deny(site.user, kind, getattr(site, name), operation)
    # A broker learns of a new rule only after a while, so the check is repeated.
    wait_until(lambda: site.check() == 1, "the right to be gone")
    (line,) = site.about(about.format(**vars(site)), "fail")
    assert line.startswith(f"fail {problem}")
    failures = [line for line in site.output_text.splitlines() if line.startswith("fail")]
    assert len(failures) == 1


def test_a_group_that_has_begun_may_do_without_reading_labels(
    secure_kafka: SecureCluster, secure_site: Site
) -> None:
    site = secure_site
    site.create()
    allow_all(secure_kafka, site)
    commit(site.kafka, site.group, site.input)
    secure_kafka.deny(site.user, "TOPIC", site.output, "READ")
    wait_until(lambda: site.check() == 0 and bool(site.topic(site.output, "warn")), "the rule")
    assert any("may not read it" in line for line in site.topic(site.output, "warn"))


def test_a_right_to_transactions_is_needed_for_exactly_once_alone(
    secure_kafka: SecureCluster, secure_site: Site
) -> None:
    site = secure_site
    site.create()
    allow_all(secure_kafka, site)
    own = {"KAFKA__GUARANTEE": "exactly-once", "KAFKA__TRANSACTIONAL_ID": "another"}
    assert site.check(**own) == 1
    assert site.about("transactional id another") == [
        "fail the worker may not use it; allow WRITE on it"
    ]
    assert site.check(KAFKA__GUARANTEE="at-least-once") == 0
    assert site.about("idempotent writing") == ["ok the worker may use it"]


# Topics.


def test_a_topic_that_is_missing_is_reported_with_how_to_create_it(site: Site) -> None:
    site.kafka.create_topic(site.input, partitions=3)
    assert site.check() == 1
    create = "fail it does not exist; create it with: worker create-topics --partitions 3"
    assert site.topic(site.output) == site.topic(site.dead) == [create]
    assert site.about("model", "ok")


def test_a_name_that_no_topic_can_have_is_reported(site: Site) -> None:
    site.check(KAFKA__OUTPUT_TOPIC="..")
    assert site.topic("..") == ["fail no topic can have this name"]


@pytest.mark.parametrize(("assignment", "used"), [("cooperative", 3), ("range", 2)])
def test_more_processes_than_partitions_are_reported(
    site: Site, assignment: str, used: int
) -> None:
    site.create()
    site.kafka.create_topic(second := site.input + "-second")
    site.check(
        KAFKA__INPUT_TOPICS=f"{site.input},{second}",
        KAFKA__ASSIGNMENT=assignment,
        RUN__PROCESSES=str(used + 1),
    )
    (line,) = [line for line in site.about("run.processes") if "partitions" in line]
    assert line.startswith(
        f"warn {used + 1} processes would share {used} partitions, so some would be idle"
    )


@pytest.mark.parametrize(
    ("configs", "risk"),
    [
        (
            {"min_insync_replicas": "1"},
            "min.insync.replicas is 1, so the loss of one broker can lose",
        ),
        (
            {"min_insync_replicas": "3"},
            "min.insync.replicas is 3 and the replication is 3, so the loss of one broker stops",
        ),
        (
            {"unclean_leader_election_enable": "true"},
            "unclean.leader.election.enable is true, so the loss of one broker can lose",
        ),
    ],
)
def test_what_the_loss_of_one_broker_costs_is_reported(
    cluster_site: Site, configs: dict[str, str], risk: str
) -> None:
    site = cluster_site
    site.create(**configs)
    assert site.check() == 0
    for topic in (site.output, site.dead):
        (line,) = site.topic(topic, "warn")
        assert line.startswith(f"warn {risk}")
    assert site.topic(site.input, "warn") == []


@pytest.mark.parametrize(
    ("pass_key", "expected"),
    [("true", "warn cleanup.policy compact refuses records without a key"), ("false", "fail")],
)
def test_compaction_is_reported(site: Site, pass_key: str, expected: str) -> None:
    site.create(cleanup_policy="compact,delete")
    site.check(KAFKA__PASS_KEY=pass_key)
    (line,) = [line for line in site.topic(site.output) if "cleanup.policy" in line]
    assert line.startswith(expected)
    (line,) = [line for line in site.topic(site.dead) if "cleanup.policy" in line]
    assert line.startswith("warn")


@pytest.mark.parametrize(
    ("configs", "reported"),
    [
        ({"retention_ms": "3600000"}, True),
        ({"retention_ms": "3600000", "message_timestamp_type": "LogAppendTime"}, False),
        ({"retention_ms": "3600000", "cleanup_policy": "compact"}, False),
        ({"retention_ms": "-1"}, False),
    ],
)
def test_labels_that_are_kept_for_less_long_than_events_are_reported(
    site: Site, configs: dict[str, str], *, reported: bool
) -> None:
    site.create(**configs)
    site.check()
    assert any("keeps labels" in line for line in site.topic(site.output, "warn")) == reported


# Sizes.


@pytest.mark.parametrize(
    ("limit", "level"), [(EVENT_BYTES - 1, "warn"), (EVENT_BYTES, "warn"), (2 * EVENT_BYTES, "")]
)
def test_the_largest_event_must_fit_into_a_dead_letter(site: Site, limit: int, level: str) -> None:
    """Two limits are looked at: that of the topic, and that of the worker."""
    site.create(max_message_bytes=str(limit))
    assert site.check(KAFKA__MAX_MESSAGE_BYTES=str(limit)) == 0
    lines = [line for line in site.topic(site.dead) if "does not fit" in line]
    needed = dead_letter_bytes(EVENT_BYTES, KafkaSettings(input_topics=(site.input,)))
    assert lines == [
        f"{level} {name} is {limit}: the dead letter of an event of {EVENT_BYTES} bytes does not "
        f"fit, so it would not carry it; set it to {needed}"
        for name in ("max.message.bytes", "kafka.max_message_bytes")
        if level
    ]


def test_labels_may_have_less_room_than_events(site: Site) -> None:
    site.create(max_message_bytes="1000000")
    site.check()
    assert any("may become a dead letter" in line for line in site.topic(site.output, "warn"))


def test_the_dead_letter_of_the_largest_event_has_the_room_that_is_asked_for(site: Site) -> None:
    most = 10_000
    site.kafka.create_topic(site.input, max_message_bytes=str(most))
    kafka = KafkaSettings(
        brokers=(site.kafka.bootstrap,),
        input_topics=(site.input,),
        dead_letter_topic=site.dead,
        max_message_bytes=dead_letter_bytes(most, KafkaSettings(input_topics=(site.input,))),
    )
    site.kafka.create_topic(site.dead, max_message_bytes=str(kafka.max_message_bytes))
    event = largest_event(site.kafka, site.input, most)
    encoder = ProducerRecordEncoder(
        LabelEncoder("", ""), site.output, site.dead, site.group, max_bytes=2**20
    )
    reason = "a reason as long as they can be" * 6
    letter = encoder.encode(event, DeadLetter(record_of(event), max(ErrorKind, key=len), reason))
    producer = new_producer(kafka)
    try:
        producer.send(letter.topic, letter.value, letter.key, letter.headers).get(PATIENCE)
    finally:
        producer.close(PATIENCE)
    assert len(site.kafka.read(site.dead)) == 1


def largest_event(kafka: Kafka, topic: str, most: int) -> ConsumerRecord:
    """Write the largest record that a topic takes, and return it."""
    taken, refused = 0, most
    while refused - taken > 1:
        size = (taken + refused) // 2
        try:
            kafka.produce(topic, [(b"key", b"x" * size, [("name", b"value")], None, None)])
            taken = size
        except MessageSizeTooLargeError:
            refused = size
    return kafka.read(topic)[-1]


# Time limits.


@EXACTLY_ONCE
def test_time_limits_that_the_brokers_accept_are_fine(site: Site, guarantee: str) -> None:
    site.create()
    site.check(KAFKA__GUARANTEE=guarantee)
    (line,) = site.about("time limits")
    assert line.startswith("ok the brokers accept those of the worker; they keep offsets for")


@pytest.fixture(scope="module")
def narrow_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Return Kafka of one broker that cannot create its own topics, and has narrow time limits."""
    _require_broker()
    properties = {
        "offsets.topic.replication.factor": "3",
        "transaction.state.log.replication.factor": "3",
        "group.min.session.timeout.ms": "16000",
        "transaction.max.timeout.ms": "14000",
    }
    with Cluster(tmp_path_factory.mktemp("narrow-kafka"), properties=properties) as cluster:
        yield cluster


@pytest.mark.slow
def test_time_limits_that_the_brokers_refuse_are_reported(
    narrow_kafka: Cluster, make_site: Any
) -> None:
    site = make_site(narrow_kafka)
    site.check(KAFKA__GUARANTEE="exactly-once", KAFKA__REQUEST_TIMEOUT_SECONDS="2")
    limits = [
        "kafka.session_timeout_seconds is 15, but group.min.session.timeout.ms is 16000",
        "kafka.transaction_timeout_seconds is 15, but transaction.max.timeout.ms is 14000",
    ]
    refused = "the brokers refuse that; change one of them"
    assert site.about("time limits") == [f"fail {limit}: {refused}" for limit in limits]


def test_brokers_that_cannot_keep_their_own_state_are_reported(
    narrow_kafka: Cluster, make_site: Any
) -> None:
    site = make_site(narrow_kafka)
    site.create()
    request = {"KAFKA__REQUEST_TIMEOUT_SECONDS": "2"}
    assert site.check(KAFKA__GUARANTEE="exactly-once", **request) == 1
    nobody = "fail no broker coordinates it; see"
    assert site.about(f"group {site.group}") == [f"{nobody} __consumer_offsets"]
    assert site.about(f"transactional id {site.group}-*") == [f"{nobody} __transaction_state"]
    unseen = ["skip the worker may not see its replication"]
    assert site.topic("__consumer_offsets") == site.topic("__transaction_state") == unseen
