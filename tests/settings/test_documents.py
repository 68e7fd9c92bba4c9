"""configs/worker.toml, docs/configuration.md and the table that they are made from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from worker.settings.documents import configuration_page, toml_example
from worker.settings.loading import load_settings, setting_variables
from worker.settings.schema import Settings
from worker.settings.table import GROUPS, SETTINGS

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "configs" / "worker.toml"
PAGE = ROOT / "docs" / "configuration.md"
VARIABLES = [
    name.removeprefix("WORKER_").lower().replace("__", ".") for name in setting_variables()
]
OUT_OF_DATE = "out of date: run `make configuration`"


def test_both_files_are_current() -> None:
    assert EXAMPLE.read_text(encoding="utf-8") == toml_example(), f"{EXAMPLE} is {OUT_OF_DATE}"
    assert PAGE.read_text(encoding="utf-8") == configuration_page(), f"{PAGE} is {OUT_OF_DATE}"


def test_the_table_has_the_settings_of_the_schema_and_no_others() -> None:
    assert sorted([*SETTINGS, *GROUPS]) == sorted(VARIABLES)


def test_the_example_names_every_setting_and_changes_none() -> None:
    assert load_settings(EXAMPLE, {}).model_dump() == load_settings(None, {}).model_dump()
    names, table = set(), ""
    for line in EXAMPLE.read_text(encoding="utf-8").splitlines():
        if header := re.fullmatch(r"\[([\w.]+)\]", line):
            table = f"{header[1]}."
            names.add(header[1])
        elif key := re.match(r"(?:# )?(\w+) = ", line):
            names.add(f"{table}{key[1]}")
    assert names - {"thresholds.joy"} == set(VARIABLES)


def test_what_the_example_shows_commented_out_can_be_used(tmp_path: Path) -> None:
    """But for empty passwords, which stand for what is not shown."""
    content = EXAMPLE.read_text(encoding="utf-8")
    used = re.sub(r"^# (\w+ = )", r"\1", content, flags=re.MULTILINE)
    # What certificates and credentials are for must be asked for as well.
    used = used.replace(
        "[kafka.tls]\n\n# With true, the connections to the brokers are encrypted.\nenabled = false",
        "[kafka.tls]\nenabled = true",
    )
    used = used.replace('mechanism = "none"', 'mechanism = "plain"')
    config = tmp_path / "my.toml"
    config.write_text(used, encoding="utf-8")
    settings = load_settings(config, {})
    assert settings.thresholds == {"joy": 0.5}
    assert settings.kafka.transactional_id == "worker-0"


@pytest.mark.parametrize("name", SETTINGS)
def test_a_description_is_whole_sentences(name: str) -> None:
    description = SETTINGS[name].description
    assert re.fullmatch(r"[A-Z].*\.", description)
    assert len(description.split()) > 5
    if SETTINGS[name].default is None:
        assert "By default" in description


@pytest.mark.parametrize("name", SETTINGS)
def test_a_description_explains_each_choice(name: str) -> None:
    model: type[BaseModel] = Settings
    *groups, field = name.split(".")
    for group in groups:
        annotation = model.model_fields[group].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        model = annotation
    for choice in get_args(model.model_fields[field].annotation):
        if isinstance(choice, str):
            assert re.search(rf"\b{choice}\b", SETTINGS[name].description)
