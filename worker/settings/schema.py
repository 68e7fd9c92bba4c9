"""The schema of the settings: groups and fields with their types, bounds and what must fit together.

Defaults and descriptions stand in the table, which help reads without waiting for pydantic.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from worker.logs.logger import log
from worker.settings.table import SETTINGS
from worker.strict import Fraction, Strict

if TYPE_CHECKING:
    from collections.abc import Iterable

PREFIX: Final = "WORKER_"
NESTING: Final = "__"


def _setting(name: str, **bounds: Any) -> Any:  # noqa: ANN401 - a field of any type
    """Return a field with the default and the description that the table has under a name."""
    default, description, *_ = SETTINGS[name]
    return Field(default=default, description=description, **bounds)


def _names(value: object) -> object:
    """Split text at commas, as lists are written in flags and variables; JSON lists are taken, too."""
    if not isinstance(value, str):
        return value
    if value.startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            # An address, such as [::1]:9092, begins with a bracket, too.
            if re.match(r'\[\s*"', value):
                demand = "a list in JSON, or names with commas between them"
                raise PydanticCustomError("form", "{demand}", {"demand": demand}) from None
    return tuple(part.strip() for part in value.split(","))


def _form(pattern: str, demand: str) -> AfterValidator:
    """Return a check of text against a pattern; `demand` says in words what it asks for."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise PydanticCustomError("form", "{demand}", {"demand": demand})
        return value

    return AfterValidator(check)


_Name = Annotated[str, Field(min_length=1)]
_Broker = Annotated[str, _form(r".+:\d{1,5}", "host:port")]
# Kafka's own rule, from its Topic class.
_Topic = Annotated[
    str, _form(r"[a-zA-Z0-9._-]{1,249}", "a topic: letters, digits, dot, dash, underscore")
]
_Listen = Annotated[str, _form(r"off|.+:\d{1,5}", "host:port, or off")]
_Host = Annotated[str, _form(r"\*|[A-Za-z0-9._-]+", "a host's name without a port, or *")]
_Hosts = Annotated[tuple[_Host, ...], NoDecode, BeforeValidator(_names)]
_Names = Annotated[tuple[_Name, ...], NoDecode, BeforeValidator(_names)]
_Brokers = Annotated[tuple[_Broker, ...], NoDecode, BeforeValidator(_names), Field(min_length=1)]
_Topics = Annotated[tuple[_Topic, ...], NoDecode, BeforeValidator(_names), Field(min_length=1)]


class InputSettings(Strict):
    """How messages are read."""

    text_field: str = _setting("input.text_field", min_length=1)
    id_field: str = _setting("input.id_field", min_length=1)
    keep: _Names = _setting("input.keep")
    skip_field: str | None = _setting("input.skip_field", min_length=1)
    max_bytes: int = _setting("input.max_bytes", ge=1, le=2**30)
    max_id_length: int = _setting("input.max_id_length", ge=1, le=2**30)


class CacheSettings(Strict):
    """What is remembered, and where."""

    enabled: bool = _setting("cache.enabled")
    directory: Path | None = _setting("cache.directory")
    disk_bytes: int = _setting("cache.disk_bytes", ge=2**20)
    memory_entries: int = _setting("cache.memory_entries", ge=0)


class EngineSettings(Strict):
    """What scores texts, and how they are put into batches."""

    kind: Literal["auto", "native", "onnxruntime"] = _setting("engine.kind")
    backend: str | None = _setting("engine.backend")
    token_budget: int = _setting("engine.token_budget", ge=1, le=2**16)


def _given(settings: Strict, group: str, names: Iterable[str]) -> list[str]:
    return [f"{group}.{name}" for name in names if getattr(settings, name) is not None]


class TlsSettings(Strict):
    """How connections to the brokers are encrypted."""

    enabled: bool = _setting("kafka.tls.enabled")
    ca: Path | None = _setting("kafka.tls.ca")
    certificate: Path | None = _setting("kafka.tls.certificate")
    key: Path | None = _setting("kafka.tls.key")
    key_password: SecretStr | None = _setting("kafka.tls.key_password")
    key_password_file: Path | None = _setting("kafka.tls.key_password_file")
    check_hostname: bool = _setting("kafka.tls.check_hostname")

    @property
    def files(self) -> list[str]:
        """Return the settings of certificates and keys that are given."""
        names = ("ca", "certificate", "key", "key_password", "key_password_file")
        return _given(self, "kafka.tls", names)


class SaslSettings(Strict):
    """Who the worker is to the brokers."""

    mechanism: Literal["none", "plain", "scram-sha-256", "scram-sha-512"] = _setting(
        "kafka.sasl.mechanism"
    )
    username: str | None = _setting("kafka.sasl.username")
    password: SecretStr | None = _setting("kafka.sasl.password")
    password_file: Path | None = _setting("kafka.sasl.password_file")

    @property
    def credentials(self) -> list[str]:
        """Return the settings of credentials that are given."""
        return _given(self, "kafka.sasl", ("username", "password", "password_file"))


class KafkaSettings(Strict):
    """Where events come from and labels go to, and with what guarantee."""

    brokers: _Brokers = _setting("kafka.brokers")
    input_topics: _Topics = _setting("kafka.input_topics")
    output_topic: _Topic = _setting("kafka.output_topic")
    dead_letter_topic: _Topic = _setting("kafka.dead_letter_topic")
    format: Literal["json", "text"] = _setting("kafka.format")
    group: _Name = _setting("kafka.group")
    client_id: _Name = _setting("kafka.client_id")
    guarantee: Literal["at-least-once", "exactly-once"] = _setting("kafka.guarantee")
    start: Literal["earliest", "latest"] = _setting("kafka.start")
    assignment: Literal["cooperative", "range"] = _setting("kafka.assignment")
    transactional_id: str | None = _setting("kafka.transactional_id", min_length=1)
    pass_key: bool = _setting("kafka.pass_key")
    pass_headers: bool = _setting("kafka.pass_headers")
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = _setting("kafka.compression")
    max_message_bytes: int = _setting("kafka.max_message_bytes", ge=1024, le=2**30)
    max_batch_bytes: int = _setting("kafka.max_batch_bytes", ge=2**20, le=2**30)
    max_key_bytes: int = _setting("kafka.max_key_bytes", ge=0, le=2**30)
    max_header_bytes: int = _setting("kafka.max_header_bytes", ge=0, le=2**30)
    undecodable: Literal["stop", "dead-letter"] = _setting("kafka.undecodable")
    max_unreadable: float = _setting("kafka.max_unreadable", ge=0, le=1)
    chunk_records: int = _setting("kafka.chunk_records", ge=1, le=10_000)
    chunk_seconds: float = _setting("kafka.chunk_seconds", gt=0, le=30)
    commit_interval_seconds: float = _setting("kafka.commit_interval_seconds", ge=0, le=10)
    deadline_seconds: float = _setting("kafka.deadline_seconds", ge=1, le=3600)
    max_poll_interval_seconds: float = _setting("kafka.max_poll_interval_seconds", ge=2, le=7200)
    session_timeout_seconds: float = _setting("kafka.session_timeout_seconds", ge=1, le=1800)
    transaction_timeout_seconds: float = _setting("kafka.transaction_timeout_seconds", ge=1, le=900)
    request_timeout_seconds: float = _setting("kafka.request_timeout_seconds", ge=1, le=60)
    tls: TlsSettings = TlsSettings()
    sasl: SaslSettings = SaslSettings()

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if 2 * self.deadline_seconds > self.max_poll_interval_seconds:
            raise ValueError(
                "kafka.max_poll_interval_seconds must be at least twice kafka.deadline_seconds"
            )
        topics = [*self.input_topics, self.output_topic, self.dead_letter_topic]
        if len(set(topics)) < len(topics):
            raise ValueError("kafka's input, output and dead-letter topics must all be different")
        if not self.tls.enabled and (unused := self.tls.files):
            raise ValueError(
                f"{', '.join(unused)} without kafka.tls.enabled would leave the connection in clear"
            )
        if self.sasl.mechanism == "none" and (unused := self.sasl.credentials):
            raise ValueError(
                f"{', '.join(unused)} without kafka.sasl.mechanism would be no login at all"
            )
        if (self.tls.certificate is None) != (self.tls.key is None):
            raise ValueError("kafka.tls.certificate and kafka.tls.key need each other")
        if self.sasl.mechanism != "none" and not (
            self.sasl.username and (self.sasl.password or self.sasl.password_file)
        ):
            raise ValueError(
                "kafka.sasl.mechanism needs kafka.sasl.username, and kafka.sasl.password or "
                "kafka.sasl.password_file"
            )
        return self


class RunSettings(Strict):
    """How `worker run` starts, reports on itself and stops."""

    processes: int = _setting("run.processes", ge=1, le=1024)
    listen: _Listen = _setting("run.listen")
    allowed_hosts: _Hosts = _setting("run.allowed_hosts")
    stop_seconds: float = _setting("run.stop_seconds", ge=0, le=3600)
    stuck_seconds: float = _setting("run.stuck_seconds", ge=5, le=86400)


class LogSettings(Strict):
    """How the worker reports on itself, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = _setting("log.level")
    format: Literal["auto", "console", "json"] = _setting("log.format")


class Settings(BaseSettings):
    """The whole configuration, checked at start-up."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter=NESTING,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        env_ignore_empty=True,
    )

    model: Path | None = _setting("model")
    model_digest: str | None = _setting("model_digest", min_length=1)
    thresholds: dict[str, Fraction] = _setting("thresholds")
    include_text: bool = _setting("include_text")
    input: InputSettings = InputSettings()
    cache: CacheSettings = CacheSettings()
    engine: EngineSettings = EngineSettings()
    kafka: KafkaSettings = KafkaSettings()
    run: RunSettings = RunSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if 2 * self.kafka.deadline_seconds > self.run.stuck_seconds:
            raise ValueError("run.stuck_seconds must be at least twice kafka.deadline_seconds")
        return self

    @property
    def cache_directory(self) -> Path | None:
        """Return the folder of the disk cache; None where nothing is to be remembered."""
        if not self.cache.enabled:
            return None
        if self.cache.directory:
            return self.cache.directory
        try:
            home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        except RuntimeError:
            log.warning("no home folder: no disk cache", advice="set WORKER_CACHE__DIRECTORY")
            return None
        return Path(home) / "worker"
