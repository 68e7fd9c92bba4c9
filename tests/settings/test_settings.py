"""Settings: one table of them, three sources, and errors that say where without saying what."""

from __future__ import annotations

import json
import re
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from worker.errors import ConfigurationError
from worker.settings.loading import KUBERNETES, load_settings, setting_variables
from worker.settings.schema import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

MARKER = "tulip"
SETTINGS = [tuple(name.removeprefix("WORKER_").lower().split("__")) for name in setting_variables()]


@pytest.fixture
def environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variables that `environ` gives."""
    for name, value in request.param.items():
        monkeypatch.setenv(name, value)


def environ(*variables: dict[str, str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("environment", variables, indirect=True)


def toml(folder: Path, content: str) -> Path:
    path = folder / "my.toml"
    path.write_text(content, encoding="utf-8")
    return path


def nested(path: tuple[str, ...], value: object) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    assert isinstance(value, dict)
    return value


def takes_any_text(path: tuple[str, ...]) -> bool:
    model: type[BaseModel] = Settings
    for name in path[:-1]:
        group = model.model_fields[name].annotation
        assert isinstance(group, type)
        assert issubclass(group, BaseModel)
        model = group
    annotation = model.model_fields[path[-1]].annotation
    kinds = {annotation}
    if get_origin(annotation) in {Union, types.UnionType}:
        kinds |= set(get_args(annotation))
    return bool(kinds & {str, Path, SecretStr})


# Nearly any text is a list of topics, of fields or of hosts.
LISTS_OF_ANY_NAMES = {("kafka", "input_topics"), ("input", "keep"), ("run", "allowed_hosts")}
PICKY = [path for path in SETTINGS if not takes_any_text(path) and path not in LISTS_OF_ANY_NAMES]


# Sources.


def test_without_any_source_all_settings_have_their_defaults() -> None:
    settings = load_settings(None, {})
    assert settings.model is None
    assert settings.input.text_field == "text"
    assert settings.cache.enabled
    assert settings.model_dump() == Settings().model_dump()


@environ({"WORKER_LOG__LEVEL": "debug"})
@pytest.mark.usefixtures("environment")
def test_the_environment_takes_precedence_over_the_file(tmp_path: Path) -> None:
    config = toml(tmp_path, '[log]\nlevel = "error"\nformat = "json"')
    assert load_settings(config, {}).log.model_dump() == {"level": "debug", "format": "json"}


@environ({"WORKER_LOG__LEVEL": "debug", "WORKER_LOG__FORMAT": "json"})
@pytest.mark.usefixtures("environment")
def test_flags_take_precedence_over_the_environment() -> None:
    settings = load_settings(None, {"log": {"level": "error"}})
    assert settings.log.model_dump() == {"level": "error", "format": "json"}


def test_flags_take_precedence_over_the_file(tmp_path: Path) -> None:
    config = toml(tmp_path, '[log]\nlevel = "debug"\nformat = "json"')
    settings = load_settings(config, {"log": {"level": "error"}})
    assert settings.log.model_dump() == {"level": "error", "format": "json"}


@environ({"WORKER_INPUT__KEEP": '["b"]', "WORKER_CACHE__ENABLED": "false"})
@pytest.mark.usefixtures("environment")
def test_a_list_and_a_switch_are_replaced_as_a_whole(tmp_path: Path) -> None:
    config = toml(tmp_path, 'input.keep = ["a", "b"]\ncache.enabled = true')
    assert load_settings(config, {}).input.keep == ("b",)
    assert load_settings(config, {"input": {"keep": ["c"]}}).input.keep == ("c",)
    assert not load_settings(config, {}).cache.enabled
    assert load_settings(config, {"cache": {"enabled": True}}).cache.enabled


@environ({"WORKER_THRESHOLDS__JOY": "0.5", "WORKER_THRESHOLDS__FEAR": "0.5"})
@pytest.mark.usefixtures("environment")
def test_thresholds_of_all_sources_add_up_label_by_label(tmp_path: Path) -> None:
    config = toml(tmp_path, "[thresholds]\nanger = 0.25\njoy = 0.25")
    settings = load_settings(config, {"thresholds": {"fear": "0.75"}})
    assert settings.thresholds == {"anger": 0.25, "joy": 0.5, "fear": 0.75}


@environ(
    {"WORKER_CACHE__DIRECTORY": "folder"},
    {"worker_cache__directory": "folder"},
    {"WORKER_CACHE": '{"directory": "folder"}'},
)
@pytest.mark.usefixtures("environment")
def test_two_underscores_lead_into_a_group() -> None:
    assert load_settings(None, {}).cache.directory == Path("folder")


def test_the_cache_folder_is_the_users_own_unless_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load_settings(None, {}).cache_directory == tmp_path / "worker"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_settings(None, {}).cache_directory == tmp_path / ".cache" / "worker"
    flags = {"cache": {"directory": "folder"}}
    assert load_settings(None, flags).cache_directory == Path("folder")


def test_without_a_cache_there_is_no_folder() -> None:
    flags = {"cache": {"directory": "folder", "enabled": False}}
    assert load_settings(None, flags).cache_directory is None


# Wrong values.


@pytest.mark.parametrize(
    ("content", "nearest"),
    [
        ('[cache]\ndirectry = "a"', "cache.directory"),
        ("include_texts = true", "include_text"),
        ('[input]\ntextfield = "a"', "input.text_field"),
        ('[logs]\nlevel = "info"', "log"),
    ],
)
def test_a_key_that_is_no_setting_is_an_error_that_names_the_nearest(
    tmp_path: Path, content: str, nearest: str
) -> None:
    with pytest.raises(ConfigurationError) as error:
        load_settings(toml(tmp_path, content), {})
    assert re.fullmatch(
        rf"[\w.]+, in .*my\.toml, is not a setting; did you mean {nearest}\?", str(error.value)
    )


def test_a_key_that_is_like_no_setting_is_an_error_that_names_the_reference(tmp_path: Path) -> None:
    message = r"zzz, in .*my\.toml, is not a setting; docs/configuration\.md has all settings"
    with pytest.raises(ConfigurationError, match=message):
        load_settings(toml(tmp_path, "zzz = 1"), {})


@pytest.mark.parametrize("path", SETTINGS, ids=".".join)
def test_a_wrong_value_in_the_file_is_named_but_not_repeated(
    tmp_path: Path, path: tuple[str, ...]
) -> None:
    config = toml(tmp_path, f'{".".join(path)} = [["{MARKER}"]]')
    with pytest.raises(ConfigurationError) as error:
        load_settings(config, {})
    assert f"the setting {'.'.join(path)}" in str(error.value)
    assert f"in {config}" in str(error.value)
    assert MARKER not in str(error.value)


@pytest.mark.parametrize("path", PICKY, ids=".".join)
@pytest.mark.parametrize("value", [MARKER, f'["{MARKER}", 7]', f'{{"x": "{MARKER}"}}'])
def test_a_wrong_value_in_the_environment_is_named_but_not_repeated(
    monkeypatch: pytest.MonkeyPatch, path: tuple[str, ...], value: str
) -> None:
    monkeypatch.setenv("WORKER_" + "__".join(path).upper(), value)
    with pytest.raises(ConfigurationError) as error:
        load_settings(None, {})
    assert f"WORKER_{path[0].upper()}" in str(error.value)
    assert "environment" in str(error.value)
    assert MARKER not in str(error.value)


@pytest.mark.parametrize("path", PICKY, ids=".".join)
def test_a_wrong_value_on_the_command_line_is_named_but_not_repeated(
    path: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError) as error:
        load_settings(toml(tmp_path, ""), nested(path, MARKER))
    assert f"the setting {'.'.join(path)}, on the command line, is wrong: " in str(error.value)
    assert MARKER not in str(error.value)


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), st.text(), max_size=3))
def test_no_threshold_that_is_a_text_raises_anything_but_a_configuration_error(
    thresholds: dict[str, str],
) -> None:
    try:
        settings = load_settings(None, {"thresholds": thresholds})
    except ConfigurationError:
        return
    assert settings.thresholds == {label: float(text) for label, text in thresholds.items()}


@pytest.mark.parametrize("value", ["-0.1", "1.1", "nan", "inf"])
def test_a_threshold_outside_of_0_and_1_is_an_error(value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"thresholds\.joy, on the command line, is wrong"):
        load_settings(None, {"thresholds": {"joy": value}})


@environ({"WORKER_CACHE__DISK_BYTES": "7"})
@pytest.mark.usefixtures("environment")
def test_a_wrong_value_is_an_error_even_where_the_file_has_a_right_one(tmp_path: Path) -> None:
    config = toml(tmp_path, "cache.disk_bytes = 2000000")
    with pytest.raises(
        ConfigurationError, match=r"\(WORKER_CACHE__DISK_BYTES\), is wrong: it must be"
    ):
        load_settings(config, {})


@environ({"WORKER_CACHE__DISK_BYTES": "7"})
@pytest.mark.usefixtures("environment")
def test_a_wrong_value_that_a_flag_replaces_is_none() -> None:
    settings = load_settings(None, {"cache": {"disk_bytes": "2000000"}})
    assert settings.cache.disk_bytes == 2_000_000


@environ(
    {"WORKER_THRESHOLDS": '{"joy": 7}'},
    {"WORKER_CACHE": '{"disk_bytes": 7}'},
    {"WORKER_INPUT__KEEP": "[7]"},
    {"WORKER_INPUT__KEEP": '["a"'},
    {"WORKER_THRESHOLDS__JOY__LOW": "1"},
)
@pytest.mark.usefixtures("environment")
def test_a_wrong_value_inside_a_table_of_the_environment_is_not_the_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="in the environment"):
        load_settings(toml(tmp_path, ""), {})


# Files that are none.


@pytest.mark.parametrize(
    "content", [f"model = {MARKER}", f'model = "{MARKER}', f"[{MARKER}", f'model = "{MARKER}" x']
)
def test_a_file_that_is_not_toml_is_an_error_that_names_the_line(
    tmp_path: Path, content: str
) -> None:
    config = toml(tmp_path, f"include_text = true\n{content}\n")
    with pytest.raises(ConfigurationError) as error:
        load_settings(config, {})
    assert str(error.value) == f"{config} is not valid TOML, line 2"


def test_a_file_that_is_not_there_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read .*absent\.toml: No such file"):
        load_settings(tmp_path / "absent.toml", {})


def test_a_file_that_is_not_utf8_is_an_error_that_says_so(tmp_path: Path) -> None:
    config = tmp_path / "my.toml"
    config.write_bytes(f'model = "{MARKER}'.encode() + b'\xe9"')
    with pytest.raises(ConfigurationError) as error:
        load_settings(config, {})
    assert str(error.value) == f"{config} is not UTF-8"


# Settings that do not fit each other.


@pytest.mark.parametrize(
    ("group", "values", "problem"),
    [
        ("run", {"stuck_seconds": 59}, "run.stuck_seconds must be at least twice kafka.deadline_s"),
        (
            "kafka",
            {"max_poll_interval_seconds": 59},
            "kafka.max_poll_interval_seconds must be at least twice kafka.deadline_seconds",
        ),
        ("kafka", {"output_topic": "chat"}, "kafka's input, output and dead-letter topics must al"),
        (
            "kafka",
            {"tls": {"enabled": True, "key": "key.pem"}},
            "kafka.tls.certificate and kafka.tls.key need each",
        ),
        (
            "kafka",
            {"tls": {"ca": "ca.pem", "key_password": "x"}},
            "kafka.tls.ca, kafka.tls.key_password without kafka.tls.enabled would leave",
        ),
        (
            "kafka",
            {"sasl": {"username": "worker", "password": "x"}},
            "kafka.sasl.username, kafka.sasl.password without kafka.sasl.mechanism would be no",
        ),
        ("kafka", {"sasl": {"mechanism": "plain"}}, "kafka.sasl.mechanism needs kafka.sasl.userna"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_an_error_that_says_how_they_would(
    group: str, values: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigurationError) as error:
        load_settings(None, {group: values})
    assert str(error.value).startswith(f"settings do not fit each other: {problem}")


def test_times_that_just_fit_are_no_error() -> None:
    settings = load_settings(
        None, {"run": {"stuck_seconds": 60}, "kafka": {"max_poll_interval_seconds": 60}}
    )
    assert settings.kafka.deadline_seconds == 30


# Variables that are none.


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("WORKER_CASH__DIRECTORY", "WORKER_CACHE__DIRECTORY"),
        ("WORKER_CACHE__DIRECTRY", "WORKER_CACHE__DIRECTORY"),
        ("WORKER_CACHE_DIRECTORY", "WORKER_CACHE__DIRECTORY"),
        ("worker_modle", "WORKER_MODEL"),
        ("WORKER_KAFKA__BROKERS__0", "WORKER_KAFKA__BROKERS"),
    ],
)
def test_a_variable_that_is_no_setting_is_an_error_that_names_the_nearest(
    monkeypatch: pytest.MonkeyPatch, name: str, nearest: str
) -> None:
    monkeypatch.setenv(name, MARKER)
    with pytest.raises(ConfigurationError) as error:
        load_settings(None, {})
    assert str(error.value) == (
        f"the environment variable {name} is not a setting; did you mean {nearest}?"
    )


@pytest.mark.parametrize("name", ["WORKER_FOO", "WORKER_QQQQQQQQ", "WORKER_"])
def test_a_variable_like_no_setting_is_an_error_that_names_the_reference(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, MARKER)
    message = rf"variable {name} is not a setting; docs/configuration\.md has all settings"
    with pytest.raises(ConfigurationError, match=message):
        load_settings(None, {})


@environ(
    {"WORKER_THRESHOLDS__JOY": "0.5", "WORKER_MODEL": "folder", "WORKER_INPUT": "{}"},
    {"WORKERS": "4", "MY_WORKER_MODEL": "folder"},
)
@pytest.mark.usefixtures("environment")
def test_settings_and_the_variables_of_other_programs_are_no_error() -> None:
    load_settings(None, {})


OF_KUBERNETES = {
    "WORKER_PORT": "tcp://10.0.0.1:80",
    "WORKER_PORT_80_TCP": "tcp://10.0.0.1:80",
    "WORKER_PORT_80_TCP_ADDR": "10.0.0.1",
    "WORKER_PORT_80_TCP_PORT": "80",
    "WORKER_PORT_80_TCP_PROTO": "tcp",
    "WORKER_PORT_53_UDP_ADDR": "10.0.0.1",
    "WORKER_SERVICE_HOST": "10.0.0.1",
    "WORKER_SERVICE_PORT": "80",
    "WORKER_SERVICE_PORT_HTTP": "80",
    "WORKER_CACHE_PORT": "tcp://10.0.0.2:80",
    "WORKER_CACHE_PORT_80_TCP_ADDR": "10.0.0.2",
    "WORKER_CACHE_SERVICE_HOST": "10.0.0.2",
    "WORKER_LOG_LEVEL_SERVICE_PORT_MY_PORT": "80",
}


@environ(OF_KUBERNETES)
@pytest.mark.usefixtures("environment")
def test_variables_of_kubernetes_are_passed_over() -> None:
    assert load_settings(None, {}).model_fields_set == set()


def test_no_setting_is_named_as_kubernetes_names_variables() -> None:
    assert all(KUBERNETES.fullmatch(name) for name in OF_KUBERNETES)
    assert [name for name in setting_variables() if KUBERNETES.fullmatch(name)] == []


# Lists.


LISTS = [
    ("input", "keep"),
    ("kafka", "brokers"),
    ("kafka", "input_topics"),
    ("run", "allowed_hosts"),
]
ITEMS: dict[tuple[str, ...], tuple[str, ...]] = {("kafka", "brokers"): ("a:1", "b:2")}


@pytest.mark.parametrize("path", LISTS, ids=".".join)
@pytest.mark.parametrize(
    "form", [",".join, " , ".join, json.dumps], ids=["commas", "commas and blanks", "JSON"]
)
def test_every_list_takes_commas_and_json_in_the_environment_in_flags_and_in_the_file(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    path: tuple[str, ...],
    form: Callable[[tuple[str, ...]], str],
) -> None:
    items = ITEMS.get(path, ("a", "b"))
    config = toml(tmp_path, f"{'.'.join(path)} = {json.dumps(form(items))}")
    monkeypatch.setenv("WORKER_" + "__".join(path).upper(), form(items))
    for settings in (
        load_settings(config, {}),
        load_settings(None, {}),
        load_settings(None, nested(path, form(items))),
    ):
        assert settings.model_dump()[path[0]][path[1]] == items


def test_the_lists_are_all_there_are() -> None:
    whole = Settings().model_dump()
    lists = {path for path in SETTINGS if len(path) == 2 and type(whole[path[0]]) is dict}
    assert {path for path in lists if type(whole[path[0]][path[1]]) is tuple} == set(LISTS)


@pytest.mark.parametrize("path", LISTS, ids=".".join)
def test_a_name_that_is_missing_between_commas_is_an_error(path: tuple[str, ...]) -> None:
    first = ITEMS.get(path, ("a",))[0]
    with pytest.raises(ConfigurationError, match=f"the setting {'.'.join(path)}, on the command"):
        load_settings(None, nested(path, f"{first},"))
