"""`worker replay`, as its users meet it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pytest

from worker import Classifier, cli

if TYPE_CHECKING:
    from worker.inference.classifier import Classification

EXAMPLE = Path(__file__).parents[2] / "worker" / "demo" / "chat.jsonl"
MESSAGES = ["gg wp", "lol", 'he said "no"', "a, b", "😂😂", "", "why would you do that", "lol"]


class Run:
    """A finished `worker replay`."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def replay(
    capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Run:
        try:
            code = cli.main(["replay", "--no-cache", *map(str, arguments)])
        except SystemExit as error:
            code = int(str(error.code))
        out, err = capfdbinary.readouterr()
        return Run(code, out.decode(), err.decode())

    return run


def json_lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def table(form: str, rows: list[list[str]]) -> bytes:
    if form == "tsv":
        return "".join("\t".join(row) + "\n" for row in rows).encode()
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


INPUTS = {
    "chat.jsonl": json_lines([{"text": text} for text in MESSAGES]),
    "chat.txt": "".join(f"{text}\n" for text in MESSAGES).encode(),
    "chat.csv": table("csv", [["user", "text"], *(["ann", text] for text in MESSAGES)]),
    "chat.tsv": table("tsv", [["user", "text"], *(["ann", text] for text in MESSAGES)]),
}


def expected(texts: list[str]) -> list[Classification]:
    return Classifier.load().classify(texts)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", INPUTS)
def test_every_format_gives_the_same_labels_and_scores(
    replay: Any,
    tmp_path: Path,
    name: str,
    packed: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    content = INPUTS[name]
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(content) if packed else content)
    run = replay(path.name)
    assert run.code == 0
    for line, result in zip(run.lines, expected(MESSAGES), strict=True):
        assert line["labels"] == list(result.labels)
        assert line["scores"] == pytest.approx(dict(result.scores), abs=1e-7)
        assert line["model"] == "emotion"
        assert len(line["digest"]) == 16


def test_ids_are_the_messages_own_or_else_their_places(replay: Any, tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "gg"}, {"text": "gg"}, {"id": 7, "text": "gg"}]
    (tmp_path / "in.jsonl").write_bytes(json_lines(rows))
    assert [line["id"] for line in replay("in.jsonl").lines] == ["a", "in.jsonl:2", 7]


def test_inputs_of_one_name_are_reported_apart_by_their_paths(replay: Any, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "in.txt").write_text("gg\n", encoding="utf-8")
    ids = [line["id"] for line in replay("a/in.txt", "b/in.txt").lines]
    assert ids == ["a/in.txt:1", "b/in.txt:1"]


def test_scores_are_the_shortest_decimals_of_their_float32(replay: Any, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("gg wp\n", encoding="utf-8")
    (result,) = expected(["gg wp"])
    (line,) = replay("in.txt").lines
    assert {name: float(f"{score:.9g}") for name, score in result.scores.items()} == pytest.approx(
        line["scores"], rel=1e-7
    )
    assert all(len(repr(score)) <= 14 for score in line["scores"].values())


def test_other_fields_stay_away_unless_they_are_kept(replay: Any, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(
        json_lines([{"text": "gg", "user": "ann", "room": {"name": "x"}}])
    )
    fields = ["id", "labels", "scores", "model", "digest"]
    assert list(replay("in.jsonl").lines[0]) == fields
    (line,) = replay("in.jsonl", "--include-text", "--keep", "room,absent").lines
    assert list(line) == [*fields, "room", "text"]
    assert (line["room"], line["text"]) == ({"name": "x"}, "gg")


def test_a_kept_field_must_not_hide_one_of_the_output(replay: Any, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(json_lines([{"text": "gg"}]))
    run = replay("in.jsonl", "--keep", "labels")
    assert run.code == 2
    assert "named like fields of the output: labels" in run.err


def test_fields_can_have_other_names(replay: Any, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(json_lines([{"body": "gg", "key": 1}]))
    (line,) = replay("in.jsonl", "--text-field", "body", "--id-field", "key").lines
    assert line["id"] == 1


def test_thresholds_can_be_overridden_and_change_the_digest(replay: Any, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("I love this so much\n", encoding="utf-8")
    (usual,) = replay("in.txt").lines
    (strict,) = replay("in.txt", "--threshold", "joy=1").lines
    assert (usual["labels"], strict["labels"]) == (["joy"], [])
    assert usual["digest"] != strict["digest"]


BAD_LINES = {
    b"{": "not-json",
    b"[1]": "not-json",
    b'"text"': "not-json",
    b'{"text": NaN}': "not-json",
    b'{"id": 1}': "no-text",
    b'{"text": null}': "no-text",
    b'{"text": 7}': "no-text",
    b'{"text": "gg", "id": [1]}': "bad-id",
    b'{"text": "\xff"}': "not-utf8",
    b'{"text": "' + b"x" * 200 + b'"}': "too-large",
}


def test_bad_lines_become_dead_letters_and_the_rest_goes_on(replay: Any, tmp_path: Path) -> None:
    good = b'{"id": 5, "text": "gg"}'
    lines = [good, *(line for bad in BAD_LINES for line in (bad, good))]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    run = replay("in.jsonl", "-o", "out.jsonl", "--max-bytes", 150)
    assert run.code == 3
    assert "11 labelled, 11 dead letters" in run.err
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == 11
    letters = [
        json.loads(line) for line in (tmp_path / "out.jsonl.dead.jsonl").read_bytes().splitlines()
    ]
    assert list(dict.fromkeys(letter["kind"] for letter in letters)) == [
        *dict.fromkeys(BAD_LINES.values())
    ]
    assert all(letter["source"] == "in.jsonl" and letter["reason"] for letter in letters)
    pieces = [letter["value"] for letter in letters if letter["kind"] == "too-large"]
    assert "".join(pieces).encode() == list(BAD_LINES)[-1]
    assert [letter["part"] for letter in letters if "part" in letter] == [1, 2]


@pytest.mark.parametrize("processes", ["1", "2"])
def test_output_and_summary_say_which_texts_were_truncated(tmp_path: Path, processes: str) -> None:
    texts = ["gg", "gg " * 1000, "wp", "wp " * 1000, "gg " * 1000]
    (tmp_path / "in.jsonl").write_bytes(json_lines([{"text": text} for text in texts]))
    command = [sys.executable, "-m", "worker", "replay", "in.jsonl", "-o", "out", "--no-cache"]
    command += ["--processes", processes]
    for state in ("done", "this run is finished"):
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert f"{state}: 5 labelled (3 of them truncated), 0 dead letters" in run.stderr
    lines = [json.loads(line) for line in (tmp_path / "out").read_bytes().splitlines()]
    assert [line.get("truncated") for line in lines] == [None, True, None, True, True]


def test_neither_logs_nor_summary_hold_a_text(replay: Any, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'{"text": "strawberry", "id": "jane"}\n{"strawberry\n')
    run = replay("in.jsonl", "-o", "out.jsonl", "--log-level", "debug")
    assert run.code == 3
    assert "strawberry" not in run.err
    assert "jane" not in run.err


def test_dead_letters_go_where_they_are_reported_to(replay: Any, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"{\n")
    assert replay("in.jsonl").code == 3
    assert replay("in.jsonl", "--dead-letters", "other").code == 3
    assert replay("in.jsonl", "-o", "out", "--dead-letters", "third").code == 3
    for name in ("dead-letters.jsonl", "other", "third"):
        assert len((tmp_path / name).read_bytes().splitlines()) == 1


def test_the_order_of_messages_changes_no_score(replay: Any, tmp_path: Path) -> None:
    lines = EXAMPLE.read_bytes().splitlines()
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    random.Random(1).shuffle(lines)  # noqa: S311 - the same order each time
    (tmp_path / "shuffled.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    usual, shuffled = (replay(name, "--include-text") for name in ("in.jsonl", "shuffled.jsonl"))
    assert sorted(usual.out.splitlines()) == sorted(shuffled.out.splitlines())


def test_the_cache_changes_no_byte(tmp_path: Path) -> None:
    for name, flags in {
        "none": ["--no-cache"],
        "cold": ["--cache-directory", str(tmp_path / "cache")],
        "warm": ["--cache-directory", str(tmp_path / "cache")],
    }.items():
        assert cli.main(["replay", str(EXAMPLE), "-o", str(tmp_path / name), *flags]) == 3
    outputs = {(tmp_path / name).read_bytes() for name in ("none", "cold", "warm")}
    assert len(outputs) == 1


def test_a_finished_run_says_so_and_changes_nothing(replay: Any, tmp_path: Path) -> None:
    assert replay(EXAMPLE, "-o", "out").code == 3
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    again = replay(EXAMPLE, "-o", "out")
    assert again.code == 3
    assert "this run is finished: 306 labelled (1 of them truncated), 8 dead" in again.err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_overwrite_starts_anew(replay: Any, tmp_path: Path) -> None:
    replay(EXAMPLE, "-o", "out")
    (tmp_path / "in.txt").write_text("gg\n", encoding="utf-8")
    run = replay("in.txt", "-o", "out", "--overwrite")
    assert run.code == 0
    assert len((tmp_path / "out").read_bytes().splitlines()) == 1
    assert (tmp_path / "out.dead.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (["--threshold", "joy=0.9"], "its model or thresholds are different"),
        (["--include-text"], "it has different options (include_text)"),
        (["--keep", "room"], "it has different options (keep)"),
        (["--max-bytes", "500"], "it has different options (max_bytes)"),
        (["--dead-letters", "elsewhere"], "it has different options (dead_letters)"),
    ],
)
def test_a_run_with_other_options_is_an_error(replay: Any, change: list[str], problem: str) -> None:
    replay(EXAMPLE, "-o", "out")
    run = replay(EXAMPLE, "-o", "out", *change)
    assert run.code == 2
    assert problem in run.err
    assert "--overwrite" in run.err


def test_a_changed_input_is_an_error(replay: Any, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("gg\n", encoding="utf-8")
    replay("in.txt", "-o", "out")
    (tmp_path / "in.txt").write_text("wp\n", encoding="utf-8")
    run = replay("in.txt", "-o", "out")
    assert run.code == 2
    assert "its inputs are different files, or have changed" in run.err


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["absent.txt"], 2, "there is no file absent.txt"),
        (["in.txt", "in.txt"], 2, "in.txt would be read or written twice (also as in.txt)"),
        (["in.txt", "-o", "in.txt"], 2, "in.txt would be read or written twice"),
        (["in.txt", "-o", "link.txt"], 2, "link.txt would be read or written twice"),
        (["in.txt", "-o", "out", "--dead-letters", "out"], 2, "written twice (also as out)"),
        (["in.txt", "-o", "out", "--dead-letters", "out.checkpoint"], 2, "written twice"),
        (["out.dead.jsonl", "-o", "out", "--overwrite"], 2, "written twice"),
        (["dead-letters.jsonl"], 2, "written twice"),
        (["folder.txt"], 2, "folder.txt is a folder; name files"),
        (["in.txt", "-o", ""], 2, "the output . is a folder"),
        (["in.txt", "-o", "x" * 300], 2, "cannot use the path xxx"),
        (["in.txt", "-o", "absent/out"], 1, "cannot write absent/out: No such file or directory"),
        (["in.doc"], 2, "cannot tell the format of in.doc; say --format jsonl|text|csv|tsv"),
        (["-"], 2, "cannot tell the format of standard input"),
        (["in.txt", "--model", "absent"], 1, "cannot read absent/manifest.json"),
        (["in.txt", "--threshold", "joy=2"], 2, "the setting thresholds.joy, on the command line"),
        (["in.txt", "--threshold", "joy"], 2, "expected LABEL=VALUE"),
        (["in.txt", "--threshold", "fun=0.5"], 2, "the model emotion does not have: fun"),
        (["in.txt", "--max-bytes", "0"], 2, "the setting input.max_bytes, on the command line"),
        (["cut.txt.gz"], 1, "cannot read cut.txt.gz: its gzip data is damaged or cut off"),
        (["in.txt", "--format", "csv"], 2, "the header of in.txt has no column 'text'"),
    ],
)
def test_what_cannot_work_is_one_clear_sentence(
    replay: Any, tmp_path: Path, arguments: list[str], code: int, problem: str
) -> None:
    (tmp_path / "in.txt").write_text("gg\n", encoding="utf-8")
    (tmp_path / "in.doc").write_text("gg\n", encoding="utf-8")
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "link.txt").hardlink_to(tmp_path / "in.txt")
    for name in ("out.dead.jsonl", "dead-letters.jsonl"):
        (tmp_path / name).write_text("precious\n", encoding="utf-8")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"gg\n" * 100)[:-10])
    run = replay(*arguments)
    assert run.code == code
    assert problem in run.err
    assert "Traceback" not in run.err
    assert (tmp_path / "in.txt").read_bytes() == b"gg\n"
    assert (tmp_path / "out.dead.jsonl").read_bytes() == b"precious\n"


def test_a_bad_header_of_a_later_input_is_an_error_before_any_work(
    replay: Any, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_text("gg\n", encoding="utf-8")
    (tmp_path / "in.csv").write_text("user,message\n", encoding="utf-8")
    assert replay("in.txt", "in.csv", "-o", "out").code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("output", [[], ["-o", "out"]])
def test_dead_letters_are_their_owners_alone_unless_the_file_says_otherwise(
    replay: Any, tmp_path: Path, output: list[str]
) -> None:
    (tmp_path / "in.jsonl").write_text("{\n")
    assert replay("in.jsonl", *output, "--dead-letters", "new").code == 3
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600
    (tmp_path / "shared").touch()
    (tmp_path / "shared").chmod(0o640)
    assert replay("in.jsonl", *output, "--overwrite", "--dead-letters", "shared").code == 3
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o640


def test_dead_letters_can_be_thrown_away(replay: Any, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"{\n")
    assert replay("in.jsonl", "-o", "out", "--dead-letters", "/dev/null").code == 3


def test_a_file_name_need_not_be_text(replay: Any, tmp_path: Path) -> None:
    name = os.fsdecode(b"b\xff.txt")
    (tmp_path / name).write_text("gg\n", encoding="utf-8")
    assert replay(name, "-o", "out").code == 0
    line = json.loads((tmp_path / "out").read_bytes())
    assert line["id"] == "b\\xff.txt:1"


@pytest.mark.parametrize("closed", [{"stdin": "<&-"}, {"stdout": ">&-"}])
def test_a_closed_stream_is_a_clear_error(tmp_path: Path, closed: dict[str, str]) -> None:
    (tmp_path / "in.txt").write_text("gg\n", encoding="utf-8")
    ((stream, redirection),) = closed.items()
    source = "- --format text" if stream == "stdin" else "in.txt"
    command = f"{sys.executable} -m worker replay {source} --no-cache {redirection}"
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=tmp_path, stderr=subprocess.PIPE, check=False
    )
    assert done.returncode == 1
    assert b"is closed" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_trouble_with_standard_error_stops_nothing(tmp_path: Path, redirection: str) -> None:
    (tmp_path / "in.txt").write_text("gg\n", encoding="utf-8")
    command = f"{sys.executable} -m worker replay in.txt -o out --no-cache {redirection}"
    assert subprocess.run(["/bin/sh", "-c", command], cwd=tmp_path, check=False).returncode == 0
    assert (tmp_path / "out").stat().st_size


def start(tmp_path: Path, *arguments: object, **more: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "worker", "replay", "--no-cache", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more
    )


def many_messages(path: Path, count: int) -> None:
    rng = random.Random(1)  # noqa: S311 - the same messages each time
    words = [
        "gg",
        "wp",
        "lol",
        "why",
        "noob",
        "thanks",
        "hate",
        "love",
        "this",
        "map",
        "push",
        "mid",
        "care",
        "back",
        "wait",
    ]
    # A few hundred different ones: what is said again within a chunk is computed once.
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 8))) for _ in range(300)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            text = rng.choice(texts)
            file.write(json.dumps({"id": number, "text": text}) if number % 50 else "{")
            file.write("\n")


def wait_for_size(path: Path, size: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None and not (path.exists() and path.stat().st_size >= size):
        time.sleep(0.001)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_again_and_again_it_ends_byte_identical(tmp_path: Path, processes: int) -> None:
    many_messages(tmp_path / "in.jsonl", 12_000)
    undisturbed = start(tmp_path, "in.jsonl", "-o", "expected")
    assert undisturbed.communicate()[1]
    rng = random.Random()  # noqa: S311 - other moments each time
    total = (tmp_path / "expected").stat().st_size
    kills = 0
    # The last chunk comes with the end, after which there is nothing to kill.
    for target in sorted(rng.randrange(total * 3 // 4) for _ in range(5)):
        process = start(tmp_path, "in.jsonl", "-o", "out", "--processes", processes)
        wait_for_size(tmp_path / "out", target, process)
        process.kill()
        # Also its children have ended then: they have standard error open.
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 2
    last = start(tmp_path, "in.jsonl", "-o", "out")
    _, err = last.communicate()
    assert last.returncode == 3
    assert b"11,760 labelled, 240 dead letters" in err
    for name in ("", ".dead.jsonl"):
        expected = (tmp_path / f"expected{name}").read_bytes()
        assert (tmp_path / f"out{name}").read_bytes() == expected


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_between_chunks_and_it_says_how_to_continue(
    tmp_path: Path, number: signal.Signals, processes: int
) -> None:
    many_messages(tmp_path / "in.jsonl", 20_000)
    process = start(tmp_path, "in.jsonl", "-o", "out", "--processes", processes)
    wait_for_size(tmp_path / "out", 1, process)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == 128 + number
    assert b"run the same command again: it continues" in err
    assert b"Traceback" not in err
    checkpoint = json.loads((tmp_path / "out.checkpoint").read_bytes())
    assert checkpoint["labels"]["bytes"] == (tmp_path / "out").stat().st_size


def children_of(process: subprocess.Popen[bytes]) -> list[int]:
    return [
        int(n) for n in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz", "in.csv"])
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_write_the_bytes_of_one(
    tmp_path: Path, name: str, processes: int
) -> None:
    many_messages(tmp_path / "in.jsonl", 7000)
    lines = (tmp_path / "in.jsonl").read_bytes()
    with gzip.open(tmp_path / "in.jsonl.gz", "wb") as file:
        file.write(lines)
    # A quoted line end now and then.
    rows = (b'"%d\n%s"\n' % (n % 300, b"gg" if n % 3 else b"wp") for n in range(7000))
    (tmp_path / "in.csv").write_bytes(b"text\n" + b"".join(rows))
    (tmp_path / "more.txt").write_bytes(b"gg\n" * 3000)
    for number in (1, processes):
        folder = tmp_path / str(number)
        folder.mkdir()
        run = start(folder, f"../{name}", "../more.txt", "-o", "out", "--processes", number)
        assert b"done: " in run.communicate()[1]
        assert run.returncode == (0 if name == "in.csv" else 3)
    for output in ("out", "out.dead.jsonl", "out.checkpoint"):
        one, several = (tmp_path / str(n) / output for n in (1, processes))
        assert one.exists() == several.exists()
        assert not one.exists() or one.read_bytes() == several.read_bytes()


def test_several_processes_write_to_standard_output_in_order(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"gg\n" * 10_000)
    out, _ = start(tmp_path, "in.txt", "--processes", 2).communicate()
    ids = [json.loads(line)["id"] for line in out.splitlines()]
    assert ids == [f"in.txt:{number}" for number in range(1, 10_001)]


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_which_then_continues(tmp_path: Path) -> None:
    many_messages(tmp_path / "in.jsonl", 20_000)
    process = start(tmp_path, "in.jsonl", "-o", "out", "--processes", 2)
    wait_for_size(tmp_path / "out", 1, process)
    os.kill(children_of(process)[1], signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == 1
    assert b"process 1 has failed (exit code -9); see what it says above, then run the same" in err
    assert b"Traceback" not in err
    _, err = start(tmp_path, "in.jsonl", "-o", "out", "--processes", 2).communicate()
    assert b"continuing after" in err
    assert b"19,600 labelled, 400 dead letters" in err


def test_a_pipe_is_read_by_one_process(tmp_path: Path) -> None:
    arguments = ("-", "--format", "text", "-o", "out", "--processes", 2)
    process = start(tmp_path, *arguments, stdin=subprocess.PIPE)
    _, err = process.communicate(b"gg\nwp\n")
    assert process.returncode == 0
    assert b"a pipe or a device is read by one process" in err
    assert len((tmp_path / "out").read_bytes().splitlines()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_is_a_clear_error_from_which_it_continues(
    tmp_path: Path, processes: int
) -> None:
    many_messages(tmp_path / "in.jsonl", 5000)
    start(tmp_path, "in.jsonl", "-o", "expected").communicate()
    limit = (tmp_path / "expected").stat().st_size // 2

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    arguments = ("in.jsonl", "-o", "out", "--processes", processes)
    full = start(tmp_path, *arguments, preexec_fn=small_disk)
    _, err = full.communicate()
    assert full.returncode == 1
    assert b"cannot write out: " in err
    assert b"it continues" in err
    assert b"Traceback" not in err
    start(tmp_path, "in.jsonl", "-o", "out").communicate()
    assert (tmp_path / "out").read_bytes() == (tmp_path / "expected").read_bytes()


@pytest.mark.parametrize("arguments", [[], ["-o", "/dev/full"]])
def test_a_full_standard_output_or_device_is_a_clear_error(
    tmp_path: Path, full_device: BinaryIO, arguments: list[str]
) -> None:
    many_messages(tmp_path / "in.jsonl", 100)
    command = [sys.executable, "-m", "worker", "replay", "in.jsonl", *arguments]
    done = subprocess.run(
        command, cwd=tmp_path, stdout=full_device, stderr=subprocess.PIPE, check=False
    )
    assert done.returncode == 1
    assert b"No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr


def test_an_error_that_nobody_expected_repeats_no_text(
    replay: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Classifier, texts: list[str]) -> None:
        raise ValueError(texts[0])

    (tmp_path / "in.txt").write_text("meet me at noon\n", encoding="utf-8")
    monkeypatch.setattr(Classifier, "classify", fail)
    run = replay("in.txt", "-o", "out")
    assert run.code == 1
    assert "an unexpected error (ValueError) ended the work" in run.err
    assert "noon" not in run.err


@pytest.mark.slow
def test_several_processes_take_inputs_behind_two_dashes(tmp_path: Path) -> None:
    (tmp_path / "-in.jsonl").write_bytes(json_lines([{"text": text} for text in MESSAGES]))
    process = start(tmp_path, "--processes", "2", "-o", "out", "--", "-in.jsonl")
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert len((tmp_path / "out").read_bytes().splitlines()) == len(MESSAGES)


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_leaves_no_traceback(tmp_path: Path) -> None:
    many_messages(tmp_path / "in.jsonl", 20_000)
    process = start(tmp_path, "in.jsonl")
    assert process.stdout
    assert process.stderr
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 1
    assert b"Traceback" not in err


def test_a_pipe_gives_its_labels_at_once_and_says_that_it_cannot_be_continued(
    tmp_path: Path,
) -> None:
    process = start(tmp_path, "-", "--format", "text", stdin=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    for number in (1, 2):
        process.stdin.write(b"gg\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["id"] == f"stdin:{number}"
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    _, err = process.communicate()
    assert b"cannot be continued" in err


def test_a_pipe_into_a_file_says_that_it_cannot_be_continued(tmp_path: Path) -> None:
    process = start(tmp_path, "-", "--format", "text", "-o", "out", stdin=subprocess.PIPE)
    _, err = process.communicate(b"gg\nwp\n")
    assert process.returncode == 0
    assert b"with a pipe or a device this run cannot be continued" in err
    assert len((tmp_path / "out").read_bytes().splitlines()) == 2


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file_or_its_lines(tmp_path: Path) -> None:
    (tmp_path / "small.txt").write_bytes(b"gg\n")
    (tmp_path / "long.txt").write_bytes(b"x" * 2**26 + b"\n" + b"gg\n" * 100_000)
    small, long = (_peak_kib(tmp_path, name) for name in ("small.txt", "long.txt"))
    assert long - small < 40 * 1024


def _peak_kib(tmp_path: Path, name: str) -> int:
    with Path(os.devnull).open("wb") as null:
        command = [sys.executable, "-m", "worker", "replay", name]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=null, stderr=null)
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0
    return usage.ru_maxrss
