"""Logs and progress go to standard error, for people on a terminal and for programs elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import termios
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from worker.logs.logger import configure_logs, log
from worker.terminal import progress
from worker.terminal.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable


def output_of(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def on_a_terminal(code: str, **environment: str) -> str:
    """Return what a program writes to standard error if standard error is a terminal."""
    terminal, its_end = os.openpty()
    termios.tcsetwinsize(its_end, (24, 120))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=its_end, env={**os.environ, **environment}
    )
    os.close(its_end)
    written = b""
    try:
        while read := os.read(terminal, 2**16):
            written += read
    except OSError:  # Linux: the other end is closed.
        pass
    finally:
        os.close(terminal)
    assert process.wait() == 0
    return written.decode()


# Logs.

LOG = (
    "from worker.logs.logger import configure_logs, log; "
    "configure_logs('info', '{}'); log.info('model loaded', name='émotion', labels=7)"
)


def test_logs_are_json_lines_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "auto")
    log.info("model loaded", name="émotion\n", labels=7)
    log.warning("disk cache off")
    output = capsys.readouterr()
    first, second = (json.loads(line) for line in output.err.splitlines())
    assert first.pop("timestamp").endswith("Z")
    assert first == {"event": "model loaded", "level": "info", "name": "émotion\n", "labels": 7}
    assert second["level"] == "warning"
    assert output.out == ""


def test_logs_are_for_people_where_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "console")
    log.info("model loaded", labels=7)
    line = capsys.readouterr().err
    assert "[info     ] model loaded" in line
    assert line.rstrip().endswith("labels=7")
    assert "\x1b" not in line


@pytest.mark.parametrize("form", ["console", "json"])
def test_what_others_named_controls_no_terminal(
    capsys: pytest.CaptureFixture[str], form: str
) -> None:
    configure_logs("info", form)
    log.info("a request was refused", host="evil\x1b[2J\x9b1m")
    line = capsys.readouterr().err
    assert not {"\x1b", "\x9b"} & set(line)
    assert "evil\\u001b[2J" in line


def test_logs_on_a_terminal_are_for_people_and_in_colour() -> None:
    line = on_a_terminal(LOG.format("auto"))
    assert "model loaded" in line
    assert "\x1b[" in line


def test_logs_on_a_terminal_are_json_lines_where_asked_for() -> None:
    assert json.loads(on_a_terminal(LOG.format("json")))["event"] == "model loaded"


@pytest.mark.parametrize(
    ("level", "logged"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_what_is_below_the_level_is_not_logged(
    capsys: pytest.CaptureFixture[str], level: str, logged: list[str]
) -> None:
    configure_logs(level, "json")
    log.debug("a")
    log.info("a")
    log.warning("a")
    log.error("a")
    lines = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["level"] for line in lines] == logged


def test_configuring_twice_does_not_log_twice(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "json")
    configure_logs("info", "json")
    log.info("a")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_program_that_imports_the_worker_keeps_its_own_log_set_up() -> None:
    output = output_of(
        "import logging, sys, structlog\n"
        "before = structlog.get_config()\n"
        "import worker.inference.classifier\n"
        "from worker.logs.logger import log\n"
        "assert not logging.getLogger().handlers\n"
        "assert not logging.getLogger('worker').handlers\n"
        "assert logging.getLogger('worker').propagate\n"
        "assert structlog.get_config() == before\n"
        "logging.basicConfig(stream=sys.stdout, format='mine: %(levelname)s %(name)s')\n"
        "log.info('a')\n"
        "log.warning('b')\n"
    )
    assert output.stdout == "mine: WARNING worker\n"
    assert output.stderr == ""


# Progress.


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that moves the clock on; by itself the clock does not move."""
    now = 100.0

    def pass_seconds(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    return pass_seconds


def test_progress_is_a_plain_line_now_and_then(
    pass_time: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(total_bytes=1000)
    pass_time(9.9)
    progress.update(500, 100, 0.25)
    assert capsys.readouterr().err == ""
    pass_time(0.1)
    progress.update(1500, 400, 0.25)
    line = "2,000 messages, 200 messages/s, 25% hits, 40% done, 15 s left\n"
    assert capsys.readouterr() == ("", line)
    pass_time(9)
    progress.update(1, 500, 0.25)
    assert capsys.readouterr().err == ""
    pass_time(1)
    progress.update(1999, 1000, 1.0)
    line = "4,000 messages, 200 messages/s, 100% hits, 100% done, 0 s left\n"
    assert capsys.readouterr().err == line
    progress.close()
    assert capsys.readouterr().err == ""


def test_progress_of_a_pipe_says_nothing_of_its_end(
    pass_time: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(total_bytes=None)
    pass_time(10)
    progress.update(2000, 100, 0.0)
    assert capsys.readouterr().err == "2,000 messages, 200 messages/s, 0% hits\n"


def test_progress_of_a_continued_run_counts_what_is_new(
    pass_time: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(total_bytes=1000, done_bytes=500)
    pass_time(10)
    progress.update(100, 750, 0.0)
    line = "100 messages, 10 messages/s, 0% hits, 75% done, 10 s left\n"
    assert capsys.readouterr().err == line


def test_progress_of_empty_files_divides_by_nothing(
    pass_time: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(total_bytes=0)
    assert progress.rate == 0
    pass_time(10)
    progress.update(0, 0, 0.0)
    assert capsys.readouterr().err == "0 messages, 0 messages/s, 0% hits\n"


def test_the_rate_is_in_messages_a_second(pass_time: Callable[[float], None]) -> None:
    progress = Progress(total_bytes=None)
    pass_time(4)
    progress.update(10, 0, 0.0)
    assert progress.rate == 2.5


PROGRESS = (
    "from worker.terminal.progress import Progress; progress = Progress({total}); "
    "progress.update(100, 500, 0.25); progress.close(); print('done')"
)


@pytest.mark.parametrize(("total", "left"), [("1000", " 50% |"), ("None", "00:0")])
def test_progress_on_a_terminal_is_a_bar_that_goes_away(total: str, left: str) -> None:
    written = on_a_terminal(PROGRESS.format(total=total), TQDM_MININTERVAL="0")
    assert left in written
    assert " messages/s, 25% hits" in written
    assert written.rpartition("\r")[0].rpartition("\r")[2].strip() == ""
    assert "\n" not in written


def test_progress_writes_nothing_to_standard_output() -> None:
    assert output_of(PROGRESS.format(total="1000")).stdout == "done\n"
