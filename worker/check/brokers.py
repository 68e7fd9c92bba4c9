"""Finds out whether brokers can be reached, and whether they take our credentials.

kafka-python says only that brokers do not answer, whether a name is wrong, a certificate is not
trusted or a password is refused. So each broker is visited twice: first by a plain connection, with
TLS if that is set, then as a client of Kafka.
"""

from __future__ import annotations

import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kafka import errors as kafka_errors

from worker.addresses import address_of
from worker.check.findings import Finding, Level
from worker.terminal.sentences import counted
from worker.transports.kafka.client_internals import ask_for_brokers, host_and_port_of_broker
from worker.transports.kafka.clients import risks

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from worker.settings.schema import KafkaSettings

_VISITS_AT_ONCE: Final = 16
BROKERS: Final = "brokers"
CREDENTIALS: Final = "credentials"
_TIMEOUTS: Final = (kafka_errors.KafkaTimeoutError, kafka_errors.RequestTimedOutError)
# The numbers that OpenSSL has for what is wrong with a certificate.
_NOT_VALID_NOW: Final = {9, 10}
_OTHER_NAME: Final = {62, 64}


@dataclass(frozen=True, slots=True)
class _Visit:
    """What came of connecting to a broker: a problem, or the brokers of its cluster.

    `problem` is about the broker itself or about our credentials, as `about` says.
    """

    address: str
    problem: str = ""
    about: str = BROKERS
    members: tuple[str, ...] = ()


def brokers(kafka: KafkaSettings, options: dict[str, Any]) -> Generator[Finding, None, bool]:
    """Visit every broker of the settings and of the cluster; returns whether one has let us in."""
    first = _visit_all(kafka.brokers, options, kafka.request_timeout_seconds)
    others = sorted({name for visit in first for name in visit.members} - set(kafka.brokers))
    visits = first + _visit_all(others, options, kafka.request_timeout_seconds)
    away = {visit.address for visit in visits if visit.problem and visit.about == BROKERS}
    members = {name for visit in visits for name in visit.members}
    reached = sorted((members or set(kafka.brokers)) - away)
    if reached:
        number = counted(len(reached), "broker")
        yield Finding(Level.OK, BROKERS, f"{number} can be reached ({', '.join(reached)})")
    for visit in visits:
        if visit.problem and visit.about == BROKERS:
            # An address that only helps to find the cluster may be away while another helps.
            level = Level.FAIL if visit.address in members or not reached else Level.WARN
            source = " (an address that the brokers give out: see advertised.listeners)"
            address = visit.address + source * (visit.address in others)
            yield Finding(level, BROKERS, f"{address} {visit.problem}")
    refusals = {visit.problem for visit in visits if visit.problem and visit.about == CREDENTIALS}
    for problem in sorted(refusals):
        yield Finding(Level.FAIL, CREDENTIALS, problem)
    if members and not refusals:
        yield credentials(kafka)
        for risk in risks(kafka):
            yield Finding(Level.WARN, CREDENTIALS, risk)
    return bool(members - away)


def credentials(kafka: KafkaSettings) -> Finding:
    """Say how we have logged in."""
    how = "with TLS" if kafka.tls.enabled else "without TLS"
    if kafka.sasl.mechanism == "none":
        who = "take our certificate" if kafka.tls.certificate else "ask for none"
        return Finding(Level.OK, CREDENTIALS, f"the brokers {who}, {how}")
    login = f"{kafka.sasl.username} may log in by {kafka.sasl.mechanism}, {how}"
    return Finding(Level.OK, CREDENTIALS, login)


def _visit_all(addresses: Sequence[str], options: dict[str, Any], seconds: float) -> list[_Visit]:
    with ThreadPoolExecutor(_VISITS_AT_ONCE) as pool:
        return list(pool.map(lambda address: _visit(address, options, seconds), addresses))


def _visit(address: str, options: dict[str, Any], seconds: float) -> _Visit:
    try:
        _connect(*host_and_port_of_broker(address), options.get("ssl_context"), seconds)
    except (OSError, ValueError) as error:
        return _Visit(address, connection_problem(error, seconds))
    try:
        members = ask_for_brokers(address, options, seconds)
    except _TIMEOUTS as error:
        return _Visit(address, connection_problem(error, seconds))
    except kafka_errors.KafkaError as error:
        return _Visit(address, refusal(error, options), CREDENTIALS)
    return _Visit(address, members=tuple(address_of(*member) for member in members))


def _connect(host: str, port: int, context: ssl.SSLContext | None, seconds: float) -> None:
    with socket.create_connection((host, port), seconds) as connection:
        if context is None:
            return
        try:
            context.wrap_socket(connection, server_hostname=host).close()
        except ConnectionError:
            raise ssl.SSLError from None


def connection_problem(error: Exception, seconds: float) -> str:
    """Say why a broker cannot be reached: the rest of a sentence that begins with its address."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _certificate_problem(error)
    if isinstance(error, (TimeoutError, *_TIMEOUTS)):
        return f"does not answer within {seconds:g} seconds"
    if isinstance(error, socket.gaierror):
        return "has a name that cannot be resolved here"
    if isinstance(error, ssl.SSLError):
        return "ends the TLS handshake; see whether kafka.tls.enabled is right"
    if isinstance(error, OSError):
        return f"cannot be reached: {error.strerror or 'it closes the connection'}"
    return "is not of the form host:port"


def _certificate_problem(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in _OTHER_NAME:
        return "has a certificate for another name; see kafka.tls.check_hostname"
    if error.verify_code in _NOT_VALID_NOW:
        return "has a certificate that is not valid now; see its dates, and the clock here"
    return "has a certificate that is not trusted here; see kafka.tls.ca"


def refusal(error: kafka_errors.KafkaError, options: dict[str, Any]) -> str:
    """Say in a sentence why brokers that can be reached do not let us in."""
    if isinstance(error, kafka_errors.UnsupportedSaslMechanismError):
        return "the brokers do not offer this login; see kafka.sasl.mechanism"
    if isinstance(error, kafka_errors.IllegalSaslStateError):
        return "the brokers ask for no login there; see kafka.brokers and kafka.sasl.mechanism"
    if "sasl_mechanism" in options and not isinstance(error, kafka_errors.KafkaProtocolError):
        # The refusal is often lost: the connection ends before the client has read it.
        return "the brokers refuse the login; see kafka.sasl.username and the password"
    if "ssl_context" in options:
        wanted = "a certificate (kafka.tls.certificate) or a login (kafka.sasl.mechanism)"
    else:
        wanted = "TLS (kafka.tls.enabled) or a login (kafka.sasl.mechanism)"
    return f"the brokers do not let us in: do they ask for {wanted}?"
