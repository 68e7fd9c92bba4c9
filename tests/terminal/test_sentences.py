"""Whatever commands print, it does not control the terminal."""

from __future__ import annotations

import json
import unicodedata
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.cli.entry import main
from worker.terminal.sentences import escaped, say, show

if TYPE_CHECKING:
    from pathlib import Path

CONTROLS = "\x1b[2J\x9b1m\r\u202e"


@pytest.mark.parametrize("function", [show, say])
def test_line_ends_stay_and_all_else_that_controls_is_escaped(
    function: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(function)
    function(f"a{CONTROLS}\nb é 👩\u200d💻")
    captured = capsys.readouterr()
    assert captured.out + captured.err == ("a\\u001b[2J\\u009b1m\\u000d\\u202e\nb é 👩\u200d💻\n")


@given(text=st.text())
def test_no_control_character_is_left(text: str) -> None:
    assert not any(unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"} for char in escaped(text))


@pytest.mark.parametrize(
    "command",
    [
        ["replay", f"no{CONTROLS}.jsonl"],
        ["replay", "in.jsonl", "--model", f"no{CONTROLS}"],
        ["evaluate", f"no{CONTROLS}", "in.jsonl"],
        ["dead-letters", "show", f"no{CONTROLS}.jsonl"],
        ["view", f"no{CONTROLS}.jsonl"],
        ["view", "in.jsonl", f"--no{CONTROLS}"],
    ],
)
def test_names_of_files_do_not(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text('{"text": "gg", "labels": ["joy"]}')
    try:
        assert main(command) in {1, 2}
    except SystemExit as error:
        assert error.code == 2  # noqa: PT017 - argparse ends so
    captured = capsys.readouterr()
    assert not set(CONTROLS) - set("[2J1m") & set(captured.out + captured.err)
    assert "no\\u001b" in captured.err


def test_labels_of_a_model_do_not(model_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = model_copy / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["labels"][0] = f"anger{CONTROLS}"
    manifest["thresholds"][f"anger{CONTROLS}"] = manifest["thresholds"].pop("anger")
    path.write_text(json.dumps(manifest))
    texts = model_copy / "texts.jsonl"
    texts.write_text(json.dumps({"text": "gg", "labels": [f"anger{CONTROLS}"]}) + "\n")
    assert main(["evaluate", str(model_copy), str(texts)]) == 0
    captured = capsys.readouterr()
    assert "anger\\u001b" in captured.out
    assert not set("\x1b\x9b\r\u202e") & set(captured.out)
