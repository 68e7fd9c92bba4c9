"""Every setting, once: from a TOML file, the environment and flags, in rising precedence."""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from worker import defaults
from worker.errors import ConfigurationError
from worker.logs.logger import log
from worker.strict import Fraction, Strict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic_core import ErrorDetails

PREFIX: Final = "WORKER_"
NESTING: Final = "__"
# What Kubernetes puts into the environment of every pod for a Service called worker, or
# worker-something: no setting may be named like these.
KUBERNETES: Final = re.compile(
    r"WORKER_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)"
)


# What a value must be, by pydantic's type of error; the braces hold what the setting demands.
_DEMANDS: Final = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a table",
    "float_parsing": "a number",
    "float_type": "a number",
    "form": "{demand}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "model_type": "a table",
    "path_type": "a path",
    "string_too_short": "not empty",
    "string_type": "text",
    "too_short": "not empty",
    "tuple_type": "a list",
}


class InputSettings(Strict):
    """How messages are read."""

    text_field: Annotated[str, Field(min_length=1, description="the field that holds the text")] = (
        "text"
    )
    id_field: Annotated[str, Field(min_length=1, description="the field that holds the id")] = "id"
    keep: Annotated[tuple[str, ...], Field(description="fields that are copied to the output")] = ()
    skip_field: Annotated[
        str | None,
        Field(min_length=1, description="events in which this field is true are not labelled"),
    ] = None
    max_bytes: Annotated[
        int, Field(ge=1, le=2**30, description="a longer message becomes a dead letter")
    ] = 2**20


class CacheSettings(Strict):
    """What is remembered, and where."""

    enabled: Annotated[bool, Field(description="remember scores, in memory and on disk")] = True
    directory: Annotated[
        Path | None, Field(description="shared by the processes of a host; owner-only")
    ] = None
    disk_bytes: Annotated[int, Field(ge=2**20, description="bound of the folder")] = (
        defaults.DISK_BYTES
    )
    memory_entries: Annotated[
        int, Field(ge=0, description="bound of the table in the process, some 170 bytes each")
    ] = defaults.MEMORY_ENTRIES


class EngineSettings(Strict):
    """How texts are put into batches."""

    token_budget: Annotated[int, Field(ge=1, le=2**16, description="tokens in a batch")] = (
        defaults.TOKEN_BUDGET
    )


class TlsSettings(Strict):
    """How connections to the brokers are encrypted."""

    enabled: Annotated[bool, Field(description="encrypt connections")] = False
    ca: Annotated[Path | None, Field(description="PEM; by default the system's")] = None
    certificate: Annotated[Path | None, Field(description="of this client, for mutual TLS")] = None
    key: Annotated[Path | None, Field(description="of the certificate")] = None
    key_password: Annotated[SecretStr | None, Field(description="of the key")] = None
    key_password_file: Annotated[Path | None, Field(description="a file that holds it")] = None
    check_hostname: Annotated[bool, Field(description="compare with the certificate")] = True


class SaslSettings(Strict):
    """Who the worker is to the brokers."""

    mechanism: Annotated[
        Literal["none", "plain", "scram-sha-256", "scram-sha-512"],
        Field(description="how to log in"),
    ] = "none"
    username: Annotated[str | None, Field(description="to log in with")] = None
    password: Annotated[SecretStr | None, Field(description="to log in with")] = None
    password_file: Annotated[Path | None, Field(description="a file that holds it")] = None


def _names(value: object) -> object:
    """Split text at commas, as a list of brokers or topics is usually written."""
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


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
_Brokers = Annotated[tuple[_Broker, ...], NoDecode, BeforeValidator(_names), Field(min_length=1)]
_Topics = Annotated[tuple[_Topic, ...], NoDecode, BeforeValidator(_names), Field(min_length=1)]


class KafkaSettings(Strict):
    """Where events come from and labels go to, and with what guarantee."""

    brokers: Annotated[_Brokers, Field(description="host:port, separated by commas")] = (
        "localhost:9092",
    )
    input_topics: Annotated[_Topics, Field(description="to read, separated by commas")] = ("chat",)
    output_topic: Annotated[_Topic, Field(description="where labels go")] = "labels"
    dead_letter_topic: Annotated[_Topic, Field(description="what could not be labelled")] = (
        "dead-letters"
    )
    format: Annotated[
        Literal["json", "text"], Field(description="what a record of an input topic holds")
    ] = "json"
    group: Annotated[_Name, Field(description="the consumer group")] = "chat-label-worker"
    client_id: Annotated[_Name, Field(description="in the brokers' logs and quotas")] = "worker"
    guarantee: Annotated[
        Literal["at-least-once", "exactly-once"], Field(description="what a fault may cost")
    ] = "at-least-once"
    start: Annotated[
        Literal["earliest", "latest"], Field(description="where a group begins that is new")
    ] = "earliest"
    assignment: Annotated[
        Literal["cooperative", "range"], Field(description="how partitions are shared out")
    ] = "cooperative"
    transactional_id: Annotated[
        str | None,
        Field(min_length=1, description="unique among living workers; by default a random one"),
    ] = None
    pass_key: Annotated[bool, Field(description="give labels the key of their event")] = True
    pass_headers: Annotated[bool, Field(description="and its headers")] = True
    compression: Annotated[
        Literal["none", "gzip", "snappy", "lz4", "zstd"], Field(description="of what is sent")
    ] = "none"
    max_message_bytes: Annotated[
        int, Field(ge=1024, le=2**30, description="no larger message is sent")
    ] = 2**21
    chunk_records: Annotated[
        int, Field(ge=1, le=10_000, description="bound of a chunk, in records")
    ] = defaults.CHUNK_RECORDS
    chunk_seconds: Annotated[
        float, Field(gt=0, le=30, description="bound of a chunk, in time to label it")
    ] = 0.5
    commit_interval_seconds: Annotated[
        float, Field(ge=0, le=10, description="least time between transactions")
    ] = 0.05
    deadline_seconds: Annotated[
        float, Field(ge=1, le=3600, description="a chunk is abandoned after it, and done again")
    ] = 30
    max_poll_interval_seconds: Annotated[
        float, Field(ge=2, le=7200, description="a worker that stalls longer leaves the group")
    ] = 300
    session_timeout_seconds: Annotated[
        float, Field(ge=1, le=1800, description="a worker that is silent longer leaves the group")
    ] = 15
    transaction_timeout_seconds: Annotated[
        float, Field(ge=1, le=900, description="how long a dead worker holds its successor back")
    ] = 15
    request_timeout_seconds: Annotated[
        float, Field(ge=1, le=60, description="after which a request to a broker is repeated")
    ] = 10
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

    processes: Annotated[
        int, Field(ge=1, le=1024, description="processes that label, each with an engine")
    ] = 1
    listen: Annotated[
        str,
        _form(r"off|.+:\d{1,5}", "host:port, or off"),
        Field(description="host:port of metrics and health, or off"),
    ] = "127.0.0.1:9464"
    stop_seconds: Annotated[
        float, Field(ge=0, le=3600, description="to finish the chunk in hand when asked to stop")
    ] = 6
    stuck_seconds: Annotated[
        float, Field(ge=5, le=86400, description="without progress, after which a process ends")
    ] = 300


class LogSettings(Strict):
    """How the worker reports on itself, on standard error."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="the least that is told")
    ] = "info"
    format: Annotated[
        Literal["auto", "console", "json"],
        Field(description="auto: for people on a terminal, JSON lines otherwise"),
    ] = "auto"


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

    model: Annotated[Path | None, Field(description="a model folder; by default the built-in")] = (
        None
    )
    thresholds: Annotated[
        dict[str, Fraction],
        Field(description="override the model's, label by label"),
    ] = Field(default_factory=dict)
    include_text: Annotated[bool, Field(description="copy the text to the output")] = False
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


def load_settings(config: Path | None, flags: Mapping[str, Any]) -> Settings:
    """Read all settings and check them whole; `flags` is nested as the settings are.

    Raises:
        ConfigurationError: a value is wrong, or the file has a key that is no setting.

    """
    content = _read_file(config) if config else {}

    class Sources(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - not read
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - not read
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, content)

    try:
        return Sources(**flags)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        raise _explain(problem, flags, config) from None
    except SettingsError as error:
        field = re.search(r'field "(\w+)"', str(error))
        raise ConfigurationError(
            f"the environment variable {PREFIX}{field[1].upper() if field else '*'} (or one below "
            "it) is not valid JSON, which a list or a table needs"
        ) from None


def warn_of_unknown_variables() -> None:
    """Log a warning for each WORKER_* variable that is no setting, with the nearest that is."""
    known = [name.removeprefix(PREFIX) for name in setting_variables()]
    for name in sorted(os.environ):
        if not name.upper().startswith(PREFIX) or KUBERNETES.fullmatch(name.upper()):
            continue
        setting = name.upper().removeprefix(PREFIX)
        if setting in known or setting.startswith(f"THRESHOLDS{NESTING}"):
            continue
        nearest = [PREFIX + match for match in difflib.get_close_matches(setting, known, n=1)]
        log.warning("unknown environment variable", name=name, nearest=next(iter(nearest), None))


def setting_variables() -> Iterator[str]:
    """Yield the environment variable of every setting, groups included."""
    return (PREFIX + NESTING.join(path).upper() for path in _paths(Settings))


def _paths(model: type[BaseModel]) -> Iterator[tuple[str, ...]]:
    for name, info in model.model_fields.items():
        yield (name,)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from ((name, *path) for path in _paths(info.annotation))


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        where = f", line {line[1]}" if line else ""
        raise ConfigurationError(f"{path} is not valid TOML{where}") from None


def _explain(
    problem: ErrorDetails, flags: Mapping[str, Any], config: Path | None
) -> ConfigurationError:
    """Say which setting is wrong, and where it was set; the value is not repeated."""
    location = problem["loc"]
    name = ".".join(part for part in location if isinstance(part, str))
    if _has(flags, location):
        source = "on the command line"
    elif variable := _variable_of(location):
        source = f"in the environment ({variable})"
    else:
        source = f"in {config}"
    if problem["type"] == "value_error":
        return ConfigurationError(f"settings do not fit each other: {problem['ctx']['error']}")
    if problem["type"] == "extra_forbidden":
        settings = [".".join(path) for path in _paths(Settings)]
        nearest = difflib.get_close_matches(name, settings, n=1)
        advice = f"did you mean {nearest[0]}?" if nearest else "see configs/worker.toml"
        return ConfigurationError(f"{name}, {source}, is not a setting", advice)
    demand = _DEMANDS.get(problem["type"], "of another form, see configs/worker.toml")
    return ConfigurationError(
        f"the setting {name}, {source}, is wrong: it must be "
        + demand.format(**problem.get("ctx", {}))
    )


def _variable_of(location: tuple[int | str, ...]) -> str | None:
    """Return the environment variable that sets a setting, by itself or in the JSON of a group."""
    values = {name.upper(): value for name, value in os.environ.items()}
    for length in range(len(location), 0, -1):
        variable = PREFIX + NESTING.join(str(part) for part in location[:length]).upper()
        if variable not in values:
            continue
        try:
            content = json.loads(values[variable])
        except ValueError:
            content = values[variable]
        if length == len(location) or _has(content, location[length:]):
            return variable
    return None


def _has(value: Any, location: tuple[int | str, ...]) -> bool:  # noqa: ANN401 - JSON
    for part in location:
        if isinstance(value, dict) and part in value:
            value = value[part]
        else:
            # A list may be one text, with commas.
            return isinstance(value, list | tuple) or isinstance(part, int)
    return True
