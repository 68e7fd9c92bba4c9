"""configs/worker.toml and docs/configuration.md, made from the table and the schema of the settings.

`make configuration` writes both; a test says when they are out of date.
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from worker.settings.schema import NESTING, PREFIX, Settings
from worker.settings.table import GROUPS, SETTINGS, Setting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_WIDTH: Final = 100
_TOML_INTRODUCTION: Final = """\
Every setting with its default. Use this file with --config. The environment \
(WORKER_CACHE__DIRECTORY and the like) overrides the file, and flags override both. A key that is \
no setting is an error. A list may also be one text, separated by commas: "a:9092,b:9092".

Made from worker/settings/table.py by `make configuration`: change the table, not this file.
"""
_PAGE_INTRODUCTION: Final = """\
# Configuration

<!-- Made from worker/settings/table.py and schema.py by `make configuration`: change those. -->

Settings come from three sources, in rising precedence: a TOML file that `--config` names
([configs/worker.toml](../configs/worker.toml) has every setting with its default), the environment,
and flags. The variable of a setting has its name in capitals after `WORKER_`, with two underscores
where the name has a dot: `WORKER_CACHE__DIRECTORY` sets `cache.directory`.

A command that uses them reads and checks all of them when it starts. A value that cannot work, a key of the file
that is no setting, and a variable beginning with `WORKER_` that is no setting end the command with
exit code 2 before anything is done. Only the variables that Kubernetes sets for a Service whose name
begins with `worker` are passed over. The empty variable of a setting counts as not set.

A list is a list in TOML. In flags and variables it is written with commas: `a:9092,b:9092`. A switch
is `true` or `false`; its flag takes no value and sets the opposite of the default.

A secret is best kept in a file, whose path is the setting, or else in a variable.
"""


def toml_example() -> str:
    """Return configs/worker.toml: every setting with its default, or an example commented out."""
    lines = _comment(_TOML_INTRODUCTION)
    group = ""
    for name, setting in SETTINGS.items():
        parent, _, key = name.rpartition(".")
        if isinstance(setting.default, dict):
            lines += ["", *_comment(setting.description), f"[{name}]"]
            lines += [f"# {label} = {_toml(value)}" for label, value in setting.example.items()]
            continue
        if parent != group:
            lines += ["", *_comment(GROUPS[parent]), f"[{parent}]"]
            group = parent
        lines += ["", *_comment(setting.description)]
        if setting.default is None:
            lines.append(f"# {key} = {_toml(setting.example)}")
        else:
            lines.append(f"{key} = {_toml(setting.default)}")
    return "\n".join(lines) + "\n"


def configuration_page() -> str:
    """Return docs/configuration.md: what each setting does, its default, values and names."""
    lines = [_PAGE_INTRODUCTION, "## For all commands", ""]
    group = ""
    for name, setting in SETTINGS.items():
        parent = name.rpartition(".")[0]
        if parent != group:
            lines += [f"## {parent}", "", *textwrap.wrap(GROUPS[parent], _WIDTH), ""]
            group = parent
        lines += [f"### `{name}`", "", *textwrap.wrap(setting.description, _WIDTH), ""]
        lines += [f"- {fact}" for fact in _facts(name, setting)] + [""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _comment(text: str) -> list[str]:
    wrapped = [
        line
        for paragraph in text.rstrip("\n").split("\n")
        for line in textwrap.wrap(paragraph, _WIDTH - len("# ")) or [""]
    ]
    return [f"# {line}".rstrip() for line in wrapped]


def _toml(value: object) -> str:
    """Write a value as TOML, which for these is as JSON."""
    return json.dumps(value, ensure_ascii=False)


def _facts(name: str, setting: Setting) -> Iterator[str]:
    if setting.default not in (None, (), {}):
        yield f"Default: `{_shown(setting.default)}`"
    yield f"Values: {_values(_field_schema(name))}"
    yield f"Variable: `{_variable(name, setting)}`"
    if setting.flag:
        yield f"Flag: `{setting.flag}`"


def _variable(name: str, setting: Setting) -> str:
    variable = PREFIX + name.replace(".", NESTING).upper()
    if isinstance(setting.default, dict):
        return "`, `".join(f"{variable}{NESTING}{label.upper()}" for label in setting.example)
    return variable


def _shown(default: object) -> str:
    return ",".join(default) if isinstance(default, tuple) else _toml(default).strip('"')


def _field_schema(name: str) -> Mapping[str, Any]:
    """Return the JSON schema of a setting, which pydantic makes of its type and bounds."""
    whole = Settings.model_json_schema()
    here: Mapping[str, Any] = whole
    for part in name.split("."):
        here = here["properties"][part]
        if "$ref" in here:
            here = whole["$defs"][here["$ref"].rpartition("/")[2]]
    return here


def _values(schema: Mapping[str, Any]) -> str:
    """Say in words what a JSON schema allows."""
    if "anyOf" in schema:
        (schema,) = (one for one in schema["anyOf"] if one["type"] != "null")
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema["type"] == "object":
        return f"a table, in which each value is {_values(schema['additionalProperties'])}"
    if schema["type"] == "string":
        return {"path": "a path", "password": "text, a secret"}.get(
            schema.get("format", ""), "text"
        )
    words = {"boolean": "true or false", "integer": "a whole number", "number": "a number"}
    bounds: dict[str, Callable[[Any], str]] = {
        "exclusiveMinimum": lambda bound: f"above {bound}",
        "minimum": lambda bound: f"at least {bound}",
        "maximum": lambda bound: f"at most {bound}",
    }
    if schema["type"] == "array":
        return "a list, not empty" if schema.get("minItems") else "a list"
    demands = [word(schema[bound]) for bound, word in bounds.items() if bound in schema]
    return ", ".join([words[schema["type"]], *demands])


def main(root: Path) -> None:
    """Write both files into a checkout of the repository."""
    (root / "configs" / "worker.toml").write_text(toml_example(), encoding="utf-8")
    (root / "docs" / "configuration.md").write_text(configuration_page(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
