"""Every command, as the real program, with each standard stream closed, and with all of them."""

from __future__ import annotations

import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from worker.events.codec import encode_dead_letter
from worker.events.records import DeadLetter, ErrorKind, FilePlace, Record

if TYPE_CHECKING:
    from pathlib import Path

STREAMS = ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"]
# A port at which nothing listens, since nothing but the superuser may.
NOBODY = "127.0.0.1:1"
LABEL = '{"labels": ["joy"], "text": "gg"}\n'
# Each with the exit code that it has when its streams are open; those that need Kafka find none.
COMMANDS = {
    "--version": 0,
    "--help": 0,
    "replay in.txt --no-cache -o out.jsonl": 0,
    "replay in.txt --no-cache -o out.jsonl --processes 2": 0,
    f"check --no-cache --brokers {NOBODY}": 1,
    f"health --listen {NOBODY}": 1,
    "dead-letters list dead.jsonl": 0,
    "dead-letters show dead.jsonl": 0,
    "dead-letters redrive dead.jsonl -o again.txt --yes": 0,
    f"dead-letters list --brokers {NOBODY}": 1,
    f"dead-letters show --brokers {NOBODY}": 1,
    f"dead-letters redrive --brokers {NOBODY} --yes": 1,
    f"dead-letters skip chat 0 0 --brokers {NOBODY} --yes": 1,
    f"create-topics --brokers {NOBODY} --wait 1": 1,
    f"demo --brokers {NOBODY} --count 1": 1,
    "view labels.jsonl": 0,
    f"view --follow --brokers {NOBODY}": 1,
    "bench absent.txt": 1,
    "plan absent.txt --rate 1 --p99 1s": 1,
    "evaluate absent absent.tsv": 1,
    "finetune --train absent.tsv --dev absent.tsv -o out": 1,
    "prepare absent -o out": 1,
}
# What these do is to print, so they cannot do it.
PRINTING = ("check", "dead-letters list", "dead-letters show", "view", "bench", "plan", "evaluate")
# These load torch first.
SLOW = ("finetune", "prepare")


def run(command: str, redirections: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a shell that closes streams; what is not closed is captured."""
    return subprocess.run(
        ["/bin/sh", "-c", f"exec {shlex.quote(sys.executable)} -m worker {command} {redirections}"],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with what the commands read."""
    monkeypatch.setenv("WORKER_KAFKA__REQUEST_TIMEOUT_SECONDS", "1")
    (tmp_path / "in.txt").write_text("gg\n" * 3, encoding="utf-8")
    (tmp_path / "labels.jsonl").write_text(LABEL, encoding="utf-8")
    letter = DeadLetter(Record(b"gg", FilePlace("in.jsonl", 1)), ErrorKind.NOT_JSON, "not JSON")
    (tmp_path / "dead.jsonl").write_bytes(encode_dead_letter(letter) + b"\n")
    return tmp_path


@pytest.mark.parametrize("closed", STREAMS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_closed_stream_is_no_traceback_and_changes_no_exit_code_but_for_what_only_prints(
    folder: Path, command: str, closed: str
) -> None:
    if command.startswith(SLOW) and closed != STREAMS[-1]:
        pytest.skip("slow to start, and the streams are all closed in another test")
    done = run(command, closed, folder)
    cannot_print = ">&-" in closed.split() and command.startswith(PRINTING)
    assert done.returncode == (1 if cannot_print else COMMANDS[command]), done.stderr
    assert b"Traceback" not in done.stderr
    if cannot_print and "2>&-" not in closed:
        assert done.stderr.startswith(b"worker: standard output is closed, ")
        assert done.stderr.count(b"\n") == 1
