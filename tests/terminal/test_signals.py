"""Stopping: the first signal is remembered, the second acts at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from typing import Any

import pytest

from worker.terminal.signals import StopSignal

SIGNALS = [signal.SIGINT, signal.SIGTERM]


def test_without_a_signal_nothing_is_received() -> None:
    with StopSignal() as stop:
        assert stop.received is None


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_remembered_and_decides_the_exit_code(number: int) -> None:
    with StopSignal() as stop:
        signal.raise_signal(number)
        assert stop.received == number
    assert stop.exit_code == 128 + number


@pytest.mark.parametrize("number", SIGNALS)
def test_afterwards_the_signals_do_what_they_did_before(number: int) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopSignal():
        signal.raise_signal(number)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_an_error_gives_the_signals_back_too() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(ZeroDivisionError), StopSignal():
        _ = 1 / 0
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_signal_between_taking_one_over_and_the_other_is_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    install = signal.signal

    def install_and_signal(number: int, handler: Any) -> Any:
        replaced = install(number, handler)
        monkeypatch.undo()
        signal.raise_signal(number)
        return replaced

    monkeypatch.setattr(signal, "signal", install_and_signal)
    with StopSignal() as stop:
        assert stop.received == signal.SIGINT
        assert [signal.getsignal(number) for number in SIGNALS] == [
            signal.default_int_handler,
            signal.SIG_DFL,
        ]
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_request_from_another_thread_is_like_a_first_sigterm() -> None:
    called = []
    with StopSignal(lambda: called.append(threading.current_thread().name)) as stop:
        threads = [threading.Thread(target=stop.request, name=name) for name in ("one", "two")]
        for thread in threads:
            thread.start()
            thread.join()
        assert stop.received == signal.SIGTERM
        assert called == ["one"]
        signal.raise_signal(signal.SIGINT)
        assert stop.received == signal.SIGTERM


def test_a_second_sigint_interrupts_at_once() -> None:
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.received == signal.SIGINT


def killed_by(*numbers: int) -> int:
    """Return how a process ends that gets these signals."""
    raised = "; ".join(f"signal.raise_signal({number:d})" for number in numbers)
    code = f"import signal; from worker.terminal.signals import StopSignal\nwith StopSignal(): {raised}"
    process = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    return process.returncode


def test_a_second_sigterm_ends_the_process_at_once() -> None:
    assert killed_by(signal.SIGTERM) == 0
    assert killed_by(signal.SIGTERM, signal.SIGTERM) == -signal.SIGTERM


def test_a_second_signal_acts_at_once_also_if_it_is_the_other_one() -> None:
    assert killed_by(signal.SIGTERM, signal.SIGINT) == -signal.SIGINT
    assert killed_by(signal.SIGINT, signal.SIGTERM) == -signal.SIGTERM
