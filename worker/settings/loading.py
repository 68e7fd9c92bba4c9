"""Reading the settings: from a TOML file, the environment and flags, in rising precedence.

Errors say which setting is wrong and where it was set; values are never repeated, since some are
secrets.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsError,
)

from worker.errors import ConfigurationError
from worker.settings.schema import NESTING, PREFIX, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pydantic_core import ErrorDetails

# Kubernetes puts these variables into the environment of every pod, for each Service called worker,
# or worker-something. They are no settings, so no setting may be named like them.
KUBERNETES: Final = re.compile(
    r"WORKER_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)"
)
_REFERENCE: Final = "docs/configuration.md has all settings"

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


def load_settings(config: Path | None, flags: Mapping[str, Any]) -> Settings:
    """Read all settings and check them whole; `flags` is nested as the settings are.

    Raises:
        ConfigurationError: a value is wrong, values do not fit each other, or the file has a key or
            the environment a variable (WORKER_*) that is no setting.

    """
    _check_variables()
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


def _check_variables() -> None:
    """Raise for a variable that is named like a setting and is none, such as a misspelt one."""
    known = [name.removeprefix(PREFIX) for name in setting_variables()]
    for name in sorted(os.environ):
        if not name.upper().startswith(PREFIX) or KUBERNETES.fullmatch(name.upper()):
            continue
        setting = name.upper().removeprefix(PREFIX)
        if setting not in known and not setting.startswith(f"THRESHOLDS{NESTING}"):
            nearest = difflib.get_close_matches(setting, known, n=1)
            raise ConfigurationError(
                f"the environment variable {name} is not a setting",
                f"did you mean {PREFIX}{nearest[0]}?" if nearest else _REFERENCE,
            )


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
        advice = f"did you mean {nearest[0]}?" if nearest else _REFERENCE
        return ConfigurationError(f"{name}, {source}, is not a setting", advice)
    demand = _DEMANDS.get(problem["type"], f"of another form; {_REFERENCE}")
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
    group = PREFIX + NESTING.join(map(str, location)).upper() + NESTING
    return next((variable for variable in values if variable.startswith(group)), None)


def _has(value: Any, location: tuple[int | str, ...]) -> bool:  # noqa: ANN401 - JSON
    for part in location:
        if isinstance(value, dict) and part in value:
            value = value[part]
        else:
            # A list may be one text, with commas.
            return isinstance(value, list | tuple) or isinstance(part, int)
    return True
