"""The watchdog: a process that hangs ends, and one that was asked to stop ends in time."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from tests.kafka.broker import wait_until
from worker.run import watchdog
from worker.run.watchdog import Watchdog

HANG = """\
import time
from worker.logs.logger import configure_logs
from worker.run.watchdog import Watchdog

def hang(message):
    time.sleep(600)

configure_logs("info", "json")
with Watchdog({stuck_seconds}, lambda: {in_hand}) as watchdog:
    {before}
    hang("a secret")
"""


def hang(stuck_seconds: float, before: str, *, in_hand: bool) -> tuple[int, list[dict[str, Any]]]:
    """Return the exit code of a process whose loop hangs, and the events that it logs."""
    code = HANG.format(stuck_seconds=stuck_seconds, before=before, in_hand=in_hand)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert "secret" not in done.stderr
    return done.returncode, [json.loads(line) for line in done.stderr.splitlines()]


@pytest.mark.parametrize("in_hand", [True, False])
def test_a_loop_that_hangs_ends_the_process_and_the_stack_of_every_thread_is_logged(
    in_hand: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    code, (first, *stacks) = hang(0.5, "pass", in_hand=in_hand)
    assert code == 1
    assert first["event"] == "stuck: a call has not returned"
    assert {line["event"] for line in stacks} == {"stack"}
    frames = {line["thread"]: line["stack"] for line in stacks}
    assert set(frames) == {"MainThread", "watchdog"}
    assert frames["MainThread"] == ["<string>:11 <module>", "<string>:6 hang"]
    assert frames["watchdog"][-1].endswith(" log_stacks")


@pytest.mark.parametrize("in_hand", [True, False])
def test_past_the_deadline_of_a_stop_the_exit_code_is_1_where_work_is_in_hand(
    in_hand: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    code, (line,) = hang(600, "watchdog.stop_by(time.monotonic())", in_hand=in_hand)
    assert code == int(in_hand)
    assert line["event"] == "stopped past the deadline"
    assert line["uncommitted"] is in_hand


# With a clock that stands still until a test moves it.


class Clock:
    """Stands in for time and for the end of the process."""

    def __init__(self) -> None:
        self.exit_codes: list[int] = []
        self._now = 1000.0
        self._looks = 0

    def monotonic(self) -> float:
        self._looks += 1
        return self._now

    def advance(self, seconds: float) -> None:
        """Move on, and wait until the watchdog has seen it; it looks at the clock twice a turn."""
        self._now += seconds
        enough = self._looks + 4
        wait_until(lambda: self._looks > enough, "the watchdog to look at its clock")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watchdog, "time", clock)
    monkeypatch.setattr(watchdog, "os", SimpleNamespace(_exit=clock.exit_codes.append))
    monkeypatch.setattr(watchdog, "_INTERVAL", 0.01)
    return clock


def test_a_loop_that_beats_may_go_on_for_ever(clock: Clock) -> None:
    with Watchdog(5, lambda: True) as dog:
        for _ in range(3):
            clock.advance(4)
            assert dog.age == 4
            dog.beat()
        assert clock.exit_codes == []
        clock.advance(6)
        assert set(clock.exit_codes) == {1}


@pytest.mark.parametrize("in_hand", [True, False])
def test_after_the_time_to_stop_there_are_two_seconds_to_close(
    clock: Clock,
    in_hand: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    with Watchdog(600, lambda: in_hand) as dog:
        dog.stop_by(clock.monotonic() + 6)
        clock.advance(8)
        assert clock.exit_codes == []
        clock.advance(1)
        assert set(clock.exit_codes) == {int(in_hand)}


def test_nobody_watches_a_loop_that_has_ended(clock: Clock) -> None:
    with Watchdog(5, lambda: True):
        clock.advance(1)
    assert "watchdog" not in [thread.name for thread in threading.enumerate()]
