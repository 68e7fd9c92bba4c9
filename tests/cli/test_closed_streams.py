"""Every command, as the real program, with standard streams closed."""

from __future__ import annotations

import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from worker.events.encoding import encode_dead_letter
from worker.events.records import DeadLetter, ErrorKind, FilePlace, Record

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow  # each test starts a process

# A port at which nothing listens, since only the superuser's programs may.
NOBODY = "127.0.0.1:1"
PATIENCE = 300.0
# What these do is to print. Each has the exit code that it has when its streams are open; where
# Kafka is needed, there is none.
PRINTING = {
    f"check --no-cache --brokers {NOBODY}": 1,
    "dead-letters list dead.jsonl": 0,
    "dead-letters show dead.jsonl": 0,
    f"dead-letters list --brokers {NOBODY}": 1,
    "view labels.jsonl": 0,
    f"view --follow --brokers {NOBODY}": 1,
    "bench absent.txt": 1,
    "plan absent.txt --rate 1 --p99 1s": 1,
    "evaluate absent absent.tsv": 1,
}
# These do something else, or have an exit code that says all.
WORKING = {
    "--version": 0,
    "--help": 0,
    "replay in.txt --no-cache -o out.jsonl": 0,
    "replay in.txt --no-cache -o out.jsonl --processes 2": 0,
    f"health --listen {NOBODY}": 1,
    "dead-letters redrive dead.jsonl -o again.txt --yes": 0,
    f"dead-letters redrive --brokers {NOBODY} --yes": 1,
    f"dead-letters skip chat 0 0 --brokers {NOBODY} --yes": 1,
    f"create-topics --brokers {NOBODY} --wait 1": 1,
    f"demo --brokers {NOBODY} --count 1": 1,
}


def shell(command: str, redirections: str) -> list[str]:
    """Return what runs a command with streams closed."""
    return ["/bin/sh", "-c", f"exec {shlex.quote(sys.executable)} {command} {redirections}"]


def run(command: str, redirections: str, folder: Path) -> tuple[int, str]:
    """Run a command of the worker with streams closed; returns exit code and standard error."""
    done = subprocess.run(
        shell(f"-m worker {command}", redirections),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    return done.returncode, done.stderr


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with what the commands read."""
    monkeypatch.setenv("WORKER_KAFKA__REQUEST_TIMEOUT_SECONDS", "1")
    (tmp_path / "in.txt").write_text("gg\n" * 3, encoding="utf-8")
    (tmp_path / "labels.jsonl").write_text('{"labels": ["joy"], "text": "gg"}\n', encoding="utf-8")
    letter = DeadLetter(Record(b"gg", FilePlace("in.jsonl", 1)), ErrorKind.NOT_JSON, "not JSON")
    (tmp_path / "dead.jsonl").write_bytes(encode_dead_letter(letter) + b"\n")
    return tmp_path


@pytest.mark.parametrize("closed", ["<&- >&-", "2>&-"])
@pytest.mark.parametrize("command", WORKING)
def test_a_command_works_without_streams_that_it_does_not_need(
    folder: Path, command: str, closed: str
) -> None:
    code, complaint = run(command, closed, folder)
    assert (code, "Traceback" in complaint) == (WORKING[command], False)


@pytest.mark.parametrize("closed", ["<&-", "2>&-"])
@pytest.mark.parametrize("command", PRINTING)
def test_so_does_one_that_prints(folder: Path, command: str, closed: str) -> None:
    code, complaint = run(command, closed, folder)
    assert (code, "Traceback" in complaint) == (PRINTING[command], False)


@pytest.mark.parametrize("command", PRINTING)
def test_a_command_that_only_prints_refuses_to_print_to_nowhere(folder: Path, command: str) -> None:
    code, complaint = run(command, ">&-", folder)
    assert code == 1
    assert complaint == (
        "worker: standard output is closed, and all that this command does is to print; "
        "lead it to /dev/null if the exit code is all that you need\n"
    )


@pytest.mark.parametrize(
    ("command", "closed", "code", "complaint"),
    [
        ("view", "<&-", 1, "standard input is closed; name a file"),
        ("view -", "<&-", 1, "standard input is closed; name a file"),
        ("replay - --format text", "<&-", 1, "standard input is closed; name a file instead of -"),
        ("replay in.txt", ">&-", 1, "standard output is closed; name a file with -o"),
        (
            "dead-letters redrive dead.jsonl -o again.txt",
            ">&-",
            1,
            "standard output is closed, so nothing can be asked; add --yes",
        ),
    ],
)
def test_a_stream_that_is_needed_and_closed_is_one_sentence(
    folder: Path, command: str, closed: str, code: int, complaint: str
) -> None:
    ended, said = run(f"{command} --log-level error", closed, folder)
    assert (ended, said) == (code, f"worker: {complaint}\n")
    assert run(command, f"{closed} 2>&-", folder) == (code, "")


def test_without_standard_input_nothing_is_confirmed(folder: Path) -> None:
    assert run("dead-letters redrive dead.jsonl -o again.txt", "<&-", folder) == (0, "")
    assert not (folder / "again.txt").exists()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_number_of_a_closed_stream(tmp_path: Path, closed: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        """import os, pathlib
from worker.cli import main
try: main(['--version'])
except SystemExit: pass
pathlib.Path('number').write_text(str(os.open(os.devnull, os.O_RDONLY)))
""",
        encoding="utf-8",
    )
    subprocess.run(shell("script.py", closed), cwd=tmp_path, capture_output=True, check=True)
    assert int((tmp_path / "number").read_text(encoding="utf-8")) > 2


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("closed", ["<&- >&-", "<&- >&- 2>&-"])
def test_run_needs_no_stream(folder: Path, closed: str, processes: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = "{}:{}".format(*server.getsockname())
    command = f"run --no-cache --brokers {NOBODY} --listen {address} --processes {processes}"
    with subprocess.Popen(
        shell(f"-m worker {command}", closed), cwd=folder, stderr=subprocess.PIPE
    ) as process:
        try:
            wait_until_it_answers(address, process)
            process.send_signal(signal.SIGTERM)
            _, complaint = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 0
    assert b"Traceback" not in complaint


def wait_until_it_answers(address: str, process: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + PATIENCE
    while True:
        assert process.poll() is None
        try:
            with urllib.request.urlopen(f"http://{address}/healthz", timeout=PATIENCE):
                return
        except urllib.error.HTTPError as answer:
            answer.close()
            return
        except OSError:
            assert time.monotonic() < ends
        time.sleep(0.1)
