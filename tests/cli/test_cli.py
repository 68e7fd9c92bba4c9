"""The command line: what it says, what its flags set, and how it ends."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import sysconfig
import unicodedata
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker import cli
from worker.cli.entry import main, parser
from worker.cli.flags import settings_of
from worker.errors import ExitCode
from worker.settings.table import SETTINGS
from worker.terminal.sentences import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMANDS = [
    *("replay", "run", "check", "health", "dead-letters", "create-topics", "demo", "view"),
    *("bench", "plan", "evaluate", "finetune", "prepare"),
]
MODULE = [sys.executable, "-m", "worker"]
CONSOLE_SCRIPT = [str(Path(sysconfig.get_path("scripts")) / "worker")]


# Longer than any file system takes.
LONG = "n" * 300


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, encoding="utf-8"
    )


# Help, version, usage.


@pytest.mark.parametrize("program", [MODULE, CONSOLE_SCRIPT], ids=["module", "console script"])
def test_it_can_be_called_as_a_module_and_as_a_program(program: list[str]) -> None:
    output = subprocess.run([*program, "--version"], capture_output=True, text=True, check=True)
    assert (output.stdout, output.stderr) == (f"worker {version('chat-label-worker')}\n", "")
    output = subprocess.run([*program, "--help"], capture_output=True, text=True, check=True)
    assert output.stderr == ""
    assert output.stdout.startswith("usage: worker ")
    assert all(re.search(rf"^    {command}\s", output.stdout, re.MULTILINE) for command in COMMANDS)
    assert "Exit codes:" in output.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: worker {command} ")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "required: COMMAND"),
        (["label"], "invalid choice: 'label'"),
        (["replay"], "required: IN"),
        (["replay", "-", "--colour"], "unrecognized arguments: --colour"),
        (["replay", "-", "--over"], "unrecognized arguments: --over"),
        (["replay", "-", "--log", "info"], "unrecognized arguments: --log"),
        (["--vers"], "required: COMMAND"),
        (["prepare", "c", "-o", "m", "--max-f1", "1"], "unrecognized arguments: --max-f1"),
        (["replay", "-", "--format", "xlsx"], "invalid choice: 'xlsx'"),
        (["replay", "-", "--threshold", "joy"], "expected LABEL=VALUE, such as joy=0.4"),
        (["finetune", "--epochs", "many"], "invalid float value: 'many'"),
    ],
)
def test_wrong_usage_is_refused_and_so_are_abbreviations(
    capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert complaint in output.err


@pytest.fixture
def _empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_each_flag_of_replay_sets_its_setting(tmp_path: Path) -> None:
    config = tmp_path / "my.toml"
    config.write_text("engine.token_budget = 64", encoding="utf-8")
    command = (
        f"replay - --config {config} --text-field body --id-field key --keep user,room --keep at "
        "--include-text --max-bytes 1000 --model folder --threshold joy=0.25 --threshold a=b=1 "
        "--no-cache --cache-directory cache --log-level error --log-format console"
    )
    settings = settings_of(parser().parse_args(command.split()))
    assert settings.model_dump(exclude_unset=True) == {
        "input": {
            "text_field": "body",
            "id_field": "key",
            "keep": ("user", "room", "at"),
            "max_bytes": 1000,
        },
        "include_text": True,
        "model": Path("folder"),
        "thresholds": {"joy": 0.25, "a=b": 1.0},
        "cache": {"enabled": False, "directory": Path("cache")},
        "log": {"level": "error", "format": "console"},
        "engine": {"token_budget": 64},
    }


def commands_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parser of every command, and of every command below one."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from commands_of(command)
    if parser.get_default("command"):
        yield parser


@pytest.mark.parametrize(
    ("command", "action"),
    [
        pytest.param(command, action, id=f"{command.prog} {action.dest}")
        for command in commands_of(parser())
        for action in command._actions
        if action.help != argparse.SUPPRESS and action.dest != "help"
    ],
)
def test_the_help_of_each_flag_stands_alone(
    command: argparse.ArgumentParser, action: argparse.Action
) -> None:
    text = (command._get_formatter()._expand_help(action)).partition(" (default: ")[0]
    assert re.fullmatch(r"[A-Z].*[.]|.+[a-z].*, --no-.*", text)
    assert len(text.split()) > 3


def test_the_flags_of_settings_are_those_of_the_table() -> None:
    flags = {
        (action.dest.removeprefix("setting:"), *action.option_strings)
        for command in commands_of(parser())
        for action in command._actions
        if action.dest.startswith("setting:")
    }
    assert flags == {(name, row.flag) for name, row in SETTINGS.items() if row.flag}


@pytest.fixture
def _chat(_empty_folder: None) -> None:
    Path("chat.jsonl").write_text('{"text": "gg", "user": 1, "room": 2}\n', encoding="utf-8")


@pytest.mark.usefixtures("_chat")
@pytest.mark.parametrize("flags", ["--keep user,room", "--keep user --keep room"])
@pytest.mark.parametrize(
    "order", ["replay --no-cache {} chat.jsonl", "replay --no-cache chat.jsonl {}"]
)
def test_the_names_after_keep_eat_no_input(
    capfdbinary: pytest.CaptureFixture[bytes], flags: str, order: str
) -> None:
    assert main(order.format(flags).split()) == 0
    label = json.loads(capfdbinary.readouterr().out)
    assert (label["user"], label["room"]) == (1, 2)


@pytest.mark.usefixtures("_chat")
def test_names_after_keep_that_blanks_separate_are_inputs_and_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["replay", "--keep", "user", "room", "chat.jsonl"]) == 2
    assert capsys.readouterr().err == "worker: there is no file room; check the path\n"
    with pytest.raises(SystemExit) as end:
        main(["replay", "chat.jsonl", "--keep", "user", "room"])
    assert end.value.code == 2
    assert "unrecognized arguments: room" in capsys.readouterr().err


# Errors.


def test_readme_lists_the_exit_codes() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d, ]+) \|", readme, re.MULTILINE)
    assert [int(code) for row in rows for code in row.split(",")] == list(ExitCode)


@pytest.mark.parametrize("name", ["WORKER_FOO", "WORKER_KAFKA__FOO"])
@pytest.mark.parametrize("command", ["check", "health", "replay -", "dead-letters list", "demo"])
def test_a_variable_that_is_no_setting_is_wrong_configuration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, command: str
) -> None:
    monkeypatch.setenv(name, "1")
    assert main(command.split()) == 2
    assert f"worker: the environment variable {name} is not a setting; " in capsys.readouterr().err


def test_the_program_can_be_called_from_python(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("worker ")


@pytest.mark.usefixtures("_empty_folder")
@pytest.mark.parametrize(
    ("arguments", "exit_code", "sentence"),
    [
        (["replay", "absent.jsonl"], 2, "there is no file absent.jsonl; check the path"),
        (["replay", "-"], 2, "cannot tell the format of standard input; say --format "),
        (["replay", "a.csv", "--config", "absent"], 2, "cannot read absent: No such file"),
        (["replay", "a.csv", "--max-bytes", "x"], 2, "the setting input.max_bytes, on the command"),
        (["view", "absent.jsonl"], 1, "cannot read absent.jsonl: No such file or directory"),
        (["view", "a", "--follow"], 2, "LABELS and --follow exclude each other; leave one of"),
        (["health", "--listen", "off"], 2, "run.listen is off; set it to host:port"),
        (["demo", "--rate", "1", "--config", "absent"], 2, "cannot read absent: No such file"),
        (["evaluate", "absent", "absent.tsv"], 1, "cannot read absent.tsv: No such file"),
        (["dead-letters", "redrive", "a", "-o", LONG, "--yes"], 1, f"cannot use {LONG}: File name"),
    ],
)
def test_an_error_is_one_sentence_and_its_kind_decides_the_exit_code(
    capsys: pytest.CaptureFixture[str], arguments: list[str], exit_code: int, sentence: str
) -> None:
    assert main(arguments) == exit_code
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"worker: {sentence}")
    assert output.err.count("\n") == 1


@pytest.mark.usefixtures("_empty_folder")
@pytest.mark.parametrize(
    ("arguments", "exit_code"), [(["replay", "absent.jsonl"], 2), (["view", "absent.jsonl"], 1)]
)
def test_the_process_ends_with_that_exit_code(arguments: list[str], exit_code: int) -> None:
    output = subprocess.run([*MODULE, *arguments], capture_output=True, text=True, check=False)
    assert output.returncode == exit_code
    assert re.fullmatch(r"worker: .*\n", output.stderr)


def test_an_interrupt_is_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("worker.demo.view.view", interrupted)
    assert main(["view"]) == 130
    assert capsys.readouterr().err == "worker: interrupted\n"


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("finetune --train a.tsv --dev a.tsv -o b", "torch"),
        ("finetune --train a.tsv --dev a.tsv -o b", "transformers"),
        ("finetune --train a.tsv --dev a.tsv -o b", "accelerate"),
        ("prepare c -o m", "torch"),
        ("prepare c -o m", "onnx"),
        ("evaluate c a.jsonl", "torch"),
        pytest.param("finetune --train a.tsv --dev a.tsv -o b", "emoji"),
    ],
)
def test_without_the_extra_building_says_what_to_install(
    tmp_path: Path, command: str, missing: str
) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"text": "a", "labels": ["b"]}', encoding="utf-8")
    output = run_python(
        f"import os, sys; os.chdir({str(tmp_path)!r}); sys.modules[{missing!r}] = None\n"
        f"from worker.cli.entry import main; sys.exit(main({command.split()!r}))"
    )
    assert output.returncode == 2
    assert re.fullmatch(
        r"worker: .* needs .*; install the extra: pip install .*'\.\[build\]'\n", output.stderr
    )


# View.


def labels_file(folder: Path, *messages: object) -> str:
    path = folder / "labels.jsonl"
    path.write_text("".join(f"{json.dumps(message)}\n" for message in messages), encoding="utf-8")
    return str(path)


def test_view_shows_labels_and_texts_side_by_side(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = labels_file(
        tmp_path,
        {"labels": ["joy"], "text": "gg ☀️"},
        {"labels": ["anger", "sadness"], "text": "why", "id": 7},
        {"labels": [], "text": ""},
    )
    assert main(["view", path]) == 0
    assert capsys.readouterr().out == (
        "joy                    gg ☀️\nanger, sadness         why\n-                      \n"
    )


def test_view_reads_standard_input_unless_reported_otherwise() -> None:
    line = b'{"labels": ["joy"], "text": "gg"}\n'
    for arguments in (["view"], ["view", "-"]):
        output = subprocess.run([*MODULE, *arguments], input=line, capture_output=True, check=True)
        assert output.stdout.split() == [b"joy", b"gg"]


def test_view_prints_no_control_characters(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = "a\x1b[31mb\rc\nd\x00e\x9b2Jf\u2028g\u2029h\ud800i\x7f"
    assert main(["view", labels_file(tmp_path, {"labels": ["joy"], "text": text})]) == 0
    assert capsys.readouterr().out.removeprefix("joy").strip() == "a [31mb c d e 2Jf g h i"


def test_view_prints_no_control_characters_of_labels_either(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["view", labels_file(tmp_path, {"labels": ["\x1b[2Jjoy"], "text": "gg"})]) == 0
    assert "\x1b" not in capsys.readouterr().out


@given(st.text(st.characters()))
def test_what_is_printable_is_one_short_line(text: str) -> None:
    line = printable(text)
    assert len(line) <= 90
    assert len(f"{line}.".splitlines()) == 1
    assert not {unicodedata.category(char) for char in line} & {"Cc", "Cs", "Zl", "Zp"}


def test_a_long_text_is_cut_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    messages = [{"labels": ["joy"], "text": "a" * length} for length in (90, 91)]
    assert main(["view", labels_file(tmp_path, *messages)]) == 0
    whole, cut = capsys.readouterr().out.splitlines()
    assert whole.endswith(" " + "a" * 90)
    assert cut.endswith(" " + "a" * 89 + "…")


@pytest.mark.parametrize(
    "line",
    [
        "tulip",
        '{"labels": ["tulip"]}',
        '{"text": "tulip"}',
        '{"labels": "tulip"',
        '{"labels": [1], "text": "tulip"}',
        '{"labels": ["tulip"], "text": 7}',
        '{"labels": null, "text": "tulip"}',
        '["tulip"]',
        "",
        "\x00",
        pytest.param("[" * 100_000),
    ],
)
def test_what_replay_did_not_write_is_an_error_that_names_the_line_and_repeats_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, line: str
) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(f'{{"labels": [], "text": "a"}}\n{line}\n', encoding="utf-8")
    assert main(["view", str(path)]) == 1
    assert capsys.readouterr().err == (
        f"worker: {path}, line 2 holds no labels with their text; "
        "write it with: worker replay --include-text\n"
    )


def test_bytes_that_are_not_utf8_are_an_error_too(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_bytes(b'{"labels": [], "text": "caf\xe9"}\n')
    assert main(["view", str(path)]) == 1
    assert "line 1 holds no labels" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error_to_tell(tmp_path: Path) -> None:
    path = labels_file(tmp_path, *[{"labels": ["joy"], "text": "gg" * 40}] * 5000)
    process = subprocess.Popen(
        [*MODULE, "view", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    assert process.stderr
    assert process.stdout.readline().startswith(b"joy ")
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1
    process.stderr.close()


@pytest.mark.parametrize("arguments", [["view", "labels.jsonl"], ["--help"], ["--version"]])
def test_a_reader_that_has_gone_before_a_short_output_is_no_error_to_tell(
    tmp_path: Path, arguments: list[str]
) -> None:
    labels_file(tmp_path, {"labels": ["joy"], "text": "gg"})
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = subprocess.run(
        [*MODULE, *arguments],
        stdout=write_end,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        check=False,
    )
    os.close(write_end)
    assert process.stderr == b""


@pytest.mark.parametrize("arguments", [["view", "labels.jsonl"], ["--help"], ["--version"]])
def test_a_full_standard_output_is_a_clear_error(
    tmp_path: Path, full_device: BinaryIO, arguments: list[str]
) -> None:
    labels_file(tmp_path, {"labels": ["joy"], "text": "gg"})
    process = subprocess.run(
        [*MODULE, *arguments],
        stdout=full_device,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert (process.returncode, process.stderr) == (1, "worker: No space left on device\n")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["view", "none.jsonl"], 1), (["view", "--follow", "labels.jsonl"], 2), (["--help"], 0)],
)
def test_a_full_standard_error_changes_no_exit_code(
    tmp_path: Path, full_device: BinaryIO, arguments: list[str], code: int
) -> None:
    process = subprocess.run(
        [*MODULE, *arguments],
        stdout=subprocess.PIPE,
        stderr=full_device,
        cwd=tmp_path,
        check=False,
    )
    assert process.returncode == code
