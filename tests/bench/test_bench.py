"""`worker bench` and `worker plan`: what is measured, and what follows from it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.bench.chunk_costs import SIZES, chunk_costs
from worker.bench.command import read_texts
from worker.bench.picture import Bar, bars
from worker.bench.plan import Costs, by_formula, plan, settled, simulated
from worker.cli.entry import main
from worker.errors import ConfigurationError
from worker.inference.artifact import BUILT_IN_MODEL, load_artifact

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ["gg wp", "why would you do that", "lol", "a, b & <c>", "😂"] * 60
# A message costs 1 ms in chunks of any size, always.
EVEN = Costs({1: [0.001] * 2, 1000: [1.0] * 2}, round_trip=0.004)


def elements_of(picture: str) -> list[ET.Element]:
    return list(ET.fromstring(picture).iter())  # noqa: S314 - written by ourselves


def words_of(picture: str) -> list[str]:
    return [element.text for element in elements_of(picture) if element.text]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "chat.txt"
    path.write_text("\n".join([*TEXTS, "", "  "]), encoding="utf-8")
    return path


@pytest.mark.slow
def test_bench_prints_a_table_and_writes_figures_and_a_picture(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, picture = tmp_path / "figures.json", tmp_path / "picture.svg"
    assert main(["bench", str(texts), "--json", str(figures), "--picture", str(picture)]) == 0
    output = capsys.readouterr().out
    content = json.loads(figures.read_bytes())
    assert content["texts"] == len(TEXTS)
    assert content["hit_rate"] == pytest.approx(1 - 5 / len(TEXTS))
    assert f"{content['remembered_per_second']:,.0f} a second" in output
    assert content["remembered_per_second"] > content["without_memory_per_second"]
    for tokens, batch, rate, gops in content["batches"]:
        assert re.search(
            rf"^ *{tokens} .*\b{batch} x +{rate:,.0f} +\({gops:3.0f}\)", output, re.MULTILINE
        )
        assert gops > 0
    words = words_of(picture.read_text(encoding="utf-8"))
    assert "all remembered" in words
    assert f"{content['remembered_per_second']:,.0f}" in words


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"", "has no texts"), (b"\n \n", "has no texts"), (b"\xff\n", "is not UTF-8")],
)
def test_a_file_without_texts_is_a_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, complaint: str
) -> None:
    (tmp_path / "chat.txt").write_bytes(content)
    assert main(["bench", str(tmp_path / "chat.txt")]) == 2
    assert complaint in capsys.readouterr().err


def test_files_that_cannot_be_used_are_clear_errors_before_anything_is_measured(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(tmp_path / "none.txt")]) == 1
    assert "cannot read" in capsys.readouterr().err
    for option in ("--json", "--picture"):
        assert main(["bench", str(texts), option, str(tmp_path)]) == 1
        output = capsys.readouterr()
        assert "cannot write" in output.err
        assert not output.out


def test_without_a_file_texts_are_made_up_the_same_each_time() -> None:
    assert read_texts(None) == read_texts(None)


def test_a_record_batch_labeller_labels_what_it_is_given() -> None:
    costs = chunk_costs(load_artifact(BUILT_IN_MODEL), TEXTS * 20)
    assert set(costs) == set(SIZES)
    assert all(seconds > 0 for each in costs.values() for seconds in each)


def test_a_plan_says_what_a_rate_needs(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts.write_text("\n".join(TEXTS * 20), encoding="utf-8")
    demand = ["--rate", "11574.1", "--p99", "1s", "--round-trip", "2ms", "--core-hour", "0.05"]
    assert main(["plan", str(texts), *demand]) == 0
    output = capsys.readouterr().out
    assert "11,574 messages a second, 1,000,002,240 a day, 99% within 1000.0 ms" in output
    assert re.search(r"processes +\d+, a core each", output)
    assert "2.0 ms of that (--round-trip)" in output
    assert "at 0.05 for a core and hour" in output


@pytest.mark.parametrize("time", ["20", "ms", "20 minutes", "-1ms"])
def test_a_time_has_a_unit(time: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--rate", "1", f"--p99={time}"])
    assert "argument --p99: " in capsys.readouterr().err


def test_what_no_number_of_processes_can_do_is_said() -> None:
    with pytest.raises(ConfigurationError, match=r"99% within 9 ms cannot be had.*5\.0 ms"):
        plan(EVEN, 100, 0.009)


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(
    rate=st.floats(1, 20_000),
    p99=st.floats(0.012, 1.0),
    each=st.floats(1e-5, 1e-3),
    spread=st.floats(0, 3),
)
def test_a_plan_keeps_its_promise_in_other_simulations_too(
    rate: float, p99: float, each: float, spread: float
) -> None:
    by_size = {n: [n * each, n * each * (1 + spread / n**0.5)] for n in (1, 16, 1024)}
    costs = Costs(by_size, round_trip=0.002)
    found = plan(costs, rate, p99)
    assert found.p99_simulated <= p99
    seconds, _ = simulated(costs, rate / found.processes, seed=2)
    assert np.percentile(seconds, 99) <= 1.1 * p99


@pytest.mark.parametrize("rate", [10, 100, 300, 600, 800])
def test_formula_and_simulation_agree_where_all_messages_cost_the_same(rate: float) -> None:
    cycle = settled(EVEN, rate)
    # T = R + r T S
    assert cycle == pytest.approx(max(0.005, 0.004 / (1 - rate * 0.001)), rel=0.01)
    seconds, busy = simulated(EVEN, rate)
    assert busy == pytest.approx(rate * 0.001, rel=0.05)
    simulated_p99 = float(np.percentile(seconds, 99))
    assert 0.5 * by_formula(EVEN, rate) <= simulated_p99 <= by_formula(EVEN, rate)


def test_a_process_that_cannot_keep_up_never_settles() -> None:
    assert settled(EVEN, 1001) == float("inf")


def test_fewer_processes_than_planned_are_not_enough() -> None:
    found = plan(EVEN, 5000, 0.05)
    fewer, _ = simulated(EVEN, 5000 / (found.processes - 2))
    assert np.percentile(fewer, 99) > 0.05


def test_bars_are_in_proportion_to_logarithms() -> None:
    rows = [Bar("one", 1, "1 ms"), Bar("ten", 10, "10 ms"), Bar("hundred", 100, "100 ms")]
    picture = bars("A < B", rows, "here")
    widths = [int(e.get("width", 0)) for e in elements_of(picture) if e.get("rx")]
    assert widths[2] - widths[1] == pytest.approx(widths[1] - widths[0], abs=1)
    assert "A < B" in words_of(picture)
