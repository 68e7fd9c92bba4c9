"""Real Kafka for tests: brokers on loopback, run from the jars that `make test` fetches.

`Kafka` is what a test asks of Kafka at an address. A `Cluster` is Kafka that runs here: one or
more `Node`s, each a process to stop, kill, pause and start again. A `SecureCluster` asks for a
login and knows what each user may do.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from secrets import token_hex
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeAlias

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourcePatternFilter,
    ResourceType,
    UserScramCredentialUpsertion,
)
from kafka.errors import KafkaError
from kafka.net.compat import KafkaNetClient

from worker.transports.kafka.client_internals import ReadingLimits, fetch_with_care

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from typing import Self

    from kafka.consumer.fetcher import ConsumerRecord

JARS = Path(__file__).parents[2] / "build" / "kafka"

# Key, value, headers, partition, and the time in milliseconds; None leaves the last two to Kafka.
Record: TypeAlias = tuple[
    bytes | None, bytes | None, "Sequence[tuple[str, bytes | None]]", int | None, int | None
]

# Generous: machines differ in speed, and nothing waits this long that works.
PATIENCE = 120.0
# What is asked meanwhile has its price, and the brokers share the machine.
PAUSE = 0.15
# Where one of several brokers hangs, another must be asked.
ANSWERED_BEFORE_LONG = {"request_timeout_ms": 10_000, "bootstrap_timeout_ms": 10_000}

JAVA = (
    "java",
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-Dorg.apache.logging.log4j.level=WARN",
    "-classpath",
    f"{JARS}/*",
)

# A broker must not outlive the tests, however these end. The kernel sees to it, but it watches
# the thread that started the process, not the whole of the parent: so one thread, which lives as
# long as the tests do, starts all of them.
TIED_TO_US = ("setpriv", "--pdeathsig", "KILL")
SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="broker-spawner")

# Internal topics are small, and what waits for a timeout waits short. Records of tests may be older
# than Kafka would keep them.
DEFAULTS = {
    "auto.create.topics.enable": "false",
    "broker.heartbeat.interval.ms": "1000",
    "broker.session.timeout.ms": "3000",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "log.cleaner.dedupe.buffer.size": "2097152",
    "log.retention.ms": "-1",
    "offsets.topic.num.partitions": "4",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
    "transaction.state.log.num.partitions": "4",
}

# CLIENT is what tests talk to, PROXIED the same by way of a proxy; the others are Kafka's own.
INTERNAL = {"CONTROLLER": "PLAINTEXT", "INTERNAL": "PLAINTEXT"}
PLAIN = INTERNAL | {"CLIENT": "PLAINTEXT", "PROXIED": "PLAINTEXT"}
SECURE = INTERNAL | {"CLIENT": "SASL_SSL", "PROXIED": "SASL_SSL", "MUTUAL": "SSL"}
MECHANISMS = ("SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN")


def missing() -> str | None:
    """Return what is missing to run a broker here."""
    programs = [name for name in ("java", "openssl", "setpriv") if shutil.which(name) is None]
    if programs:
        return f"no broker can run here: {', '.join(programs)} not found"
    if not (JARS / ".jars").exists():
        return "no broker can run here: `make build/kafka/.jars` has not fetched its jars"
    return None


def wait_until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s in vain: {what}")
        time.sleep(PAUSE)


class Kafka:
    """Kafka at an address, and what a test asks of it."""

    def __init__(self, bootstrap: str, **settings: Any) -> None:
        """Keep the settings that each client needs to be let in, in kafka-python's names."""
        self.bootstrap = bootstrap
        self.settings: dict[str, Any] = {"bootstrap_servers": bootstrap.split(","), **settings}
        self._kept: dict[tuple[Any, ...], Any] = {}
        self._turn = RLock()

    def admin(self) -> AbstractContextManager[KafkaAdminClient]:
        """Lend a client for administration."""
        return self._lend(KafkaAdminClient, **ANSWERED_BEFORE_LONG)

    def close(self) -> None:
        """Close the clients that are kept."""
        with self._turn:
            for client in self._kept.values():
                client.close()
            self._kept.clear()

    def brokers(self) -> set[int]:
        """Return the ids of the brokers that take part, as the first that answers sees them."""
        # What a client can ask for in public may be answered by any broker, a hung one too.
        with closing(self._connect(KafkaAdminClient, **ANSWERED_BEFORE_LONG)) as admin:
            return {broker.node_id for broker in admin._manager.cluster.brokers()}

    def create_topic(self, name: str, partitions: int = 1, **configs: str) -> None:
        """Create a topic that is ready to use; its configs are written with underscores."""
        topic = {
            "num_partitions": partitions,
            "configs": {key.replace("_", "."): value for key, value in configs.items()},
        }
        self._ask(lambda admin: admin.create_topics({name: topic}, wait_for_metadata=True))

    def delete_topic(self, name: str) -> None:
        self._ask(lambda admin: admin.delete_topics([name]))

    def produce(self, topic: str, records: Iterable[Record], **settings: Any) -> None:
        """Write records and wait until Kafka has all of them."""
        producer = self._connect(KafkaProducer, **{"acks": "all", **settings})
        try:
            sent = [
                producer.send(topic, value, key, list(headers), partition, timestamp)
                for key, value, headers, partition, timestamp in records
            ]
            for record in sent:
                record.get(timeout=PATIENCE)
        finally:
            producer.close(timeout=PATIENCE)

    def read(self, topic: str, isolation: str = "read_committed") -> list[ConsumerRecord]:
        """Return a topic's records up to where it ends now, each partition in its order."""
        partitions = self.partitions(topic)
        records: list[ConsumerRecord] = self._consume(
            isolation, lambda consumer: _read(consumer, partitions)
        )
        return records

    def ends(self, topic: str, isolation: str) -> dict[TopicPartition, int]:
        """Return where a topic ends; for committed reads, before the first open transaction."""
        partitions = self.partitions(topic)
        ends: dict[TopicPartition, int] = self._consume(
            isolation, lambda consumer: consumer.end_offsets(partitions)
        )
        return ends

    def is_settled(self, topic: str) -> bool:
        """Return whether no transaction is open that hides what comes after it."""
        return self.ends(topic, "read_committed") == self.ends(topic, "read_uncommitted")

    def partitions(self, topic: str) -> list[TopicPartition]:
        """Return the partitions that a topic has now."""
        (found,) = self._ask(lambda admin: admin.describe_topics([topic]))
        numbers = sorted(partition["partition_index"] for partition in found["partitions"])
        assert numbers, f"there is no topic {topic} to see"
        return [TopicPartition(topic, number) for number in numbers]

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """Return the offset that a group has committed for each partition, where it has."""
        offsets = self._ask(lambda admin: admin.list_group_offsets({group: None})[group])
        return {
            partition.partition: position.offset
            for partition, position in offsets.items()
            if partition.topic == topic and position.offset >= 0
        }

    @contextmanager
    def _lend(self, make: Callable[..., Any], **settings: Any) -> Iterator[Any]:
        """Lend a client that is kept until it fails or `close` is called, to one at a time."""
        # A new one costs as much as ten questions, and tests ask again and again.
        key = (make, *settings.items())
        with self._turn:
            if key not in self._kept:
                self._kept[key] = self._connect(make, **settings)
            try:
                yield self._kept[key]
            except KafkaError:
                self.close()
                raise

    def _connect(self, make: Callable[..., Any], **settings: Any) -> Any:
        """Make a client, or close what kafka-python leaves running where it cannot."""
        made: list[KafkaNetClient] = []

        def network(**config: Any) -> KafkaNetClient:
            made.append(KafkaNetClient(**config))
            return made[-1]

        try:
            return make(**{**settings, **self.settings, "kafka_client": network})
        except KafkaError:
            for each in made:
                each.close()
            raise

    def _consume(self, isolation: str, question: Callable[[KafkaConsumer], Any]) -> Any:
        def ask() -> Any:
            with self._lend(
                _careful_consumer, isolation_level=isolation, enable_auto_commit=False
            ) as consumer:
                return question(consumer)

        return _again(ask)

    def _ask(self, question: Callable[[KafkaAdminClient], Any]) -> Any:
        def ask() -> Any:
            with self.admin() as admin:
                return question(admin)

        return _again(ask)


def _careful_consumer(**settings: Any) -> KafkaConsumer:
    """Return a consumer that reads whatever is on a topic; kafka-python's own does not."""
    consumer = KafkaConsumer(**settings)
    fetch_with_care(consumer, ReadingLimits(batch_bytes=2**26, header_bytes=2**24))
    return consumer


def _again(ask: Callable[[], Any]) -> Any:
    """Ask again while nothing answers, or the answer is to try it later."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return ask()
        except KafkaError as error:
            if not error.retriable or time.monotonic() > deadline:
                raise
        time.sleep(PAUSE)


def _read(consumer: KafkaConsumer, partitions: Sequence[TopicPartition]) -> list[ConsumerRecord]:
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    ends = consumer.end_offsets(partitions)
    records: list[ConsumerRecord] = []

    def at_the_end() -> bool:
        for fresh in consumer.poll(timeout_ms=100).values():
            records.extend(fresh)
        # A position steps over the markers of transactions, which no record ever shows.
        return all(consumer.position(partition) >= end for partition, end in ends.items())

    wait_until(at_the_end, f"the end of {partitions[0].topic}")
    consumer.unsubscribe()
    return sorted(records, key=lambda record: (record.partition, record.offset))


# Each port is given out once, also among processes that run tests at the same time, and none is of
# those that the kernel gives to clients: one of these could take the place of a broker that is
# down, or connect to itself there.
SHARE = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
SHARES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
PORTS = iter(random.sample(range(10_000 + SHARE, 32_000, SHARES), 20_000 // SHARES))


def free_port() -> int:
    return next(port for port in PORTS if not _listens(port))


def _listens(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(PATIENCE)
        return client.connect_ex(("127.0.0.1", port)) == 0


class Node:
    """A process of a cluster: broker and controller in one."""

    def __init__(self, number: int, folder: Path, **settings: Any) -> None:
        self.number = number
        self.folder = folder
        self.ports = {name: free_port() for name in (*SECURE, "PROXY")}
        self.log = folder / "broker.log"
        self.kafka = Kafka(self.address, **settings)
        self._process: subprocess.Popen[bytes] | None = None
        self.disturbed = False

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.ports['CLIENT']}"

    @property
    def proxy_port(self) -> int:
        """Return where clients look for this node that have come by way of a proxy."""
        return self.ports["PROXY"]

    @property
    def proxied_port(self) -> int:
        """Return what a proxy that listens on `proxy_port` must forward to."""
        return self.ports["PROXIED"]

    @property
    def pid(self) -> int:
        return self._running_process().pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def format(self, properties: Mapping[str, str], *credentials: str) -> None:
        """Write the settings, and the storage as it is before the first start."""
        self.folder.mkdir(parents=True)
        config = self.folder / "server.properties"
        config.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
        users = [f"--add-scram={credential}" for credential in credentials]
        command = [*JAVA, "kafka.tools.StorageTool", "format", "--cluster-id=tests"]
        with self.log.open("ab") as log:
            done = subprocess.run(
                [*command, f"--config={config}", *users], stdout=log, stderr=log, check=False
            )
        if done.returncode != 0:
            raise self._ended()

    def start(self) -> None:
        """Start the process and wait until it answers."""
        self.spawn()
        self.wait_until_it_sees({self.number})

    def spawn(self) -> None:
        """Start the process."""
        assert not self.running
        self.disturbed = True
        command = [*TIED_TO_US, *JAVA, "kafka.Kafka", str(self.folder / "server.properties")]
        with self.log.open("ab") as log:
            start = SPAWNER.submit(
                subprocess.Popen, command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            self._process = start.result()

    def wait_until_it_sees(self, brokers: set[int]) -> None:
        wait_until(lambda: self._sees(brokers), f"broker {self.number} to see {brokers}")

    def _sees(self, brokers: set[int]) -> bool:
        if not self.running:
            raise self._ended()
        try:
            return _listens(self.ports["CLIENT"]) and brokers <= self.kafka.brokers()
        except KafkaError:
            return False

    def _ended(self) -> RuntimeError:
        return RuntimeError(f"broker {self.number} ended:\n{self.log.read_text()[-4000:]}")

    def stop(self) -> None:
        """Let the process end in its own way."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """Hang: connections stay, nothing answers."""
        self.disturbed = True
        self._running_process().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._running_process().send_signal(signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        process = self._running_process()
        process.send_signal(how)
        process.send_signal(signal.SIGCONT)
        process.wait(PATIENCE)

    def _running_process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        assert self.running
        return self._process


class Cluster(Kafka):
    """Kafka that runs here, from `with` to its end, in nodes that can go and come."""

    listeners = PLAIN
    credentials: tuple[str, ...] = ()

    def __init__(
        self,
        folder: Path,
        size: int = 1,
        properties: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self.nodes = [
            Node(number, folder / f"broker-{number}", **settings) for number in range(1, size + 1)
        ]
        self.properties = _properties_of_all(self.nodes, self.listeners) | dict(properties or {})
        super().__init__(",".join(node.address for node in self.nodes), **settings)

    @property
    def node(self) -> Node:
        """Return the node of a cluster that has one."""
        (node,) = self.nodes
        return node

    @property
    def proxy_bootstrap(self) -> str:
        """Return where clients begin that shall come by way of proxies."""
        return ",".join(f"127.0.0.1:{node.proxy_port}" for node in self.nodes)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Let no node run."""
        self.close()
        for node in self.nodes:
            if node.running:
                node.kill()

    def _start(self) -> None:
        with ThreadPoolExecutor() as pool:
            formats = [
                pool.submit(
                    node.format,
                    self.properties | _properties_of(node, self.listeners),
                    *self.credentials,
                )
                for node in self.nodes
            ]
        for done in formats:
            done.result()
        for node in self.nodes:
            node.spawn()
        self._wait_until_complete()

    def revive(self) -> None:
        """Let every node run again and catch up, whatever was done to it."""
        for node in self.nodes:
            if node.running:
                node.resume()
            else:
                node.spawn()
        if any(node.disturbed for node in self.nodes):
            self._wait_until_complete()
        for node in self.nodes:
            node.disturbed = False

    def _wait_until_complete(self) -> None:
        for node in self.nodes:
            node.wait_until_it_sees({other.number for other in self.nodes})
        wait_until(self._in_sync, "all replicas to be in sync")

    def _in_sync(self) -> bool:
        topics = self._ask(lambda admin: admin.describe_topics())
        partitions = [partition for topic in topics for partition in topic["partitions"]]
        return all(
            partition["leader_id"] >= 0
            and {*partition["isr_nodes"]} == {*partition["replica_nodes"]}
            for partition in partitions
        )


def _properties_of_all(nodes: list[Node], listeners: Mapping[str, str]) -> dict[str, str]:
    voters = [f"{node.number}@127.0.0.1:{node.ports['CONTROLLER']}" for node in nodes]
    replicas = str(len(nodes))
    in_sync = str(len(nodes) // 2 + 1)
    return DEFAULTS | {
        "process.roles": "broker,controller",
        "controller.quorum.voters": ",".join(voters),
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "INTERNAL",
        "listener.security.protocol.map": ",".join(f"{k}:{v}" for k, v in listeners.items()),
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": replicas,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync,
    }


def _properties_of(node: Node, listeners: Mapping[str, str]) -> dict[str, str]:
    ports = {name: node.ports[name] for name in listeners}
    advertised = ports | {"PROXIED": node.proxy_port}
    del advertised["CONTROLLER"]
    return {
        "node.id": str(node.number),
        "log.dirs": str(node.folder / "data"),
        "listeners": _urls(ports),
        "advertised.listeners": _urls(advertised),
    }


def _urls(ports: Mapping[str, int]) -> str:
    return ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items())


OPENSSL_CONFIG = """
[req]
distinguished_name = name
[name]
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[broker]
subjectAltName = IP:127.0.0.1, DNS:localhost
authorityKeyIdentifier = keyid
[client]
extendedKeyUsage = clientAuth
authorityKeyIdentifier = keyid
"""


class Certificates:
    """What a certificate authority has signed: the brokers' certificate, and one user's."""

    def __init__(self, folder: Path, user: str) -> None:
        self._folder = folder
        self._config = folder / "openssl.cnf"
        self._config.write_text(OPENSSL_CONFIG)
        self.key_password = token_hex(8)
        self.ca, ca_key = self._make("ca", "test authority")
        signed = ("-CA", str(self.ca), "-CAkey", str(ca_key))
        broker, broker_key = self._make("broker", "broker", *signed)
        self.keystore = folder / "keystore.pem"
        self.keystore.write_text(broker_key.read_text() + broker.read_text())
        self.client, self.client_key = self._make("client", user, *signed)
        self.encrypted_client_key = self._encrypt(self.client_key)

    def _make(self, kind: str, name: str, *signed: str) -> tuple[Path, Path]:
        certificate, key = self._folder / f"{kind}.pem", self._folder / f"{kind}.key"
        new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        about = ("-config", str(self._config), "-extensions", kind, "-subj", f"/CN={name}")
        files = ("-keyout", str(key), "-out", str(certificate))
        _openssl("req", "-x509", "-days", "2", *new_key, *about, *files, *signed)
        return certificate, key

    def _encrypt(self, key: Path) -> Path:
        encrypted = key.with_suffix(".encrypted.key")
        password = ("-passout", f"pass:{self.key_password}")
        _openssl("pkcs8", "-topk8", "-in", str(key), "-out", str(encrypted), *password)
        return encrypted


def _openssl(*arguments: str) -> None:
    command = ["openssl", *arguments]
    subprocess.run(command, check=True, capture_output=True)


class SecureCluster(Cluster):
    """One broker that asks for a login over TLS and lets users do what they are allowed to.

    At first, `admin` may do everything and `worker` nothing; the client certificate is `worker`'s.
    """

    listeners = SECURE

    def __init__(self, folder: Path) -> None:
        self.passwords = {"admin": token_hex(8), "worker": token_hex(8)}
        self.credentials = tuple(
            f"{mechanism}=[name={user},password={password}]"
            for mechanism in MECHANISMS[:2]
            for user, password in self.passwords.items()
        )
        self.certificates = Certificates(folder, "worker")
        super().__init__(folder, properties=self._security(), **self.login("admin"))

    def login(self, user: str, mechanism: str = MECHANISMS[0]) -> dict[str, Any]:
        """Return the settings of a client that logs in as a user at `bootstrap`."""
        return {
            "security_protocol": "SASL_SSL",
            "ssl_cafile": str(self.certificates.ca),
            "sasl_mechanism": mechanism,
            "sasl_plain_username": user,
            "sasl_plain_password": self.passwords[user],
        }

    @property
    def mutual_bootstrap(self) -> str:
        """Return where the client certificate is asked for, and is the login."""
        return f"127.0.0.1:{self.node.ports['MUTUAL']}"

    def certificate_login(self) -> dict[str, Any]:
        """Return the settings of a client at `mutual_bootstrap`, the key encrypted."""
        return {
            "security_protocol": "SSL",
            "ssl_cafile": str(self.certificates.ca),
            "ssl_certfile": str(self.certificates.client),
            "ssl_keyfile": str(self.certificates.encrypted_client_key),
            "ssl_password": self.certificates.key_password,
        }

    def add_user(self, user: str) -> None:
        """Add a user, who can log in by SCRAM-SHA-512 and may do nothing."""
        self.passwords[user] = token_hex(8)
        change = UserScramCredentialUpsertion(user, MECHANISMS[0], self.passwords[user])
        with self.admin() as admin:
            assert admin.alter_user_scram_credentials([change]) == {user: None}
            wait_until(
                lambda: user in admin.describe_user_scram_credentials(),
                f"the broker to know {user}",
            )

    def allow(
        self, user: str, kind: str, name: str, *operations: str, prefix: bool = False
    ) -> None:
        """Allow operations, as in READ, on one resource of a kind, as in TOPIC, or on a prefix."""
        self._rule("ALLOW", user, _pattern(kind, name, prefix=prefix), operations)

    def deny(self, user: str, kind: str, name: str, *operations: str, prefix: bool = False) -> None:
        """Deny operations, which goes before all that is allowed."""
        self._rule("DENY", user, _pattern(kind, name, prefix=prefix), operations)

    def forget(self, user: str) -> None:
        """Take back all that a user was allowed or denied."""
        rules = _rules_of(user)
        with self.admin() as admin:
            admin.delete_acls([rules])
            wait_until(lambda: not admin.describe_acls(rules)[0], f"{user} to have no rules")

    def _rule(
        self, permission: str, user: str, pattern: ResourcePattern, operations: Iterable[str]
    ) -> None:
        kind = ACLPermissionType[permission]
        rules = [
            ACL(f"User:{user}", "*", ACLOperation[operation], kind, pattern)
            for operation in operations
        ]
        with self.admin() as admin:
            assert not admin.create_acls(rules)["failed"]
            wait_until(
                lambda: {*rules} <= {*admin.describe_acls(_rules_of(user))[0]},
                f"the rules of {user}",
            )

    def _security(self) -> dict[str, str]:
        return {
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            # Brokers and controllers talk to each other without a login.
            "super.users": "User:admin;User:ANONYMOUS",
            "sasl.enabled.mechanisms": ",".join(MECHANISMS),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.certificates.keystore),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.certificates.ca),
            "ssl.principal.mapping.rules": "RULE:^CN=(.*)$/$1/",
            "listener.name.mutual.ssl.client.auth": "required",
            **self._login_modules("client"),
            **self._login_modules("proxied"),
        }

    def _login_modules(self, listener: str) -> dict[str, str]:
        security = "org.apache.kafka.common.security"
        scram = f"{security}.scram.ScramLoginModule required;"
        users = " ".join(f'user_{user}="{word}"' for user, word in self.passwords.items())
        plain = f"{security}.plain.PlainLoginModule required {users};"
        return {
            f"listener.name.{listener}.scram-sha-512.sasl.jaas.config": scram,
            f"listener.name.{listener}.scram-sha-256.sasl.jaas.config": scram,
            f"listener.name.{listener}.plain.sasl.jaas.config": plain,
        }


def _pattern(kind: str, name: str, *, prefix: bool) -> ResourcePattern:
    how = ACLResourcePatternType.PREFIXED if prefix else ACLResourcePatternType.LITERAL
    return ResourcePattern(ResourceType[kind], name, how)


def _rules_of(user: str) -> ACLFilter:
    everything = ResourcePatternFilter(ResourceType.ANY, None, ACLResourcePatternType.ANY)
    return ACLFilter(f"User:{user}", None, ACLOperation.ANY, ACLPermissionType.ANY, everything)
