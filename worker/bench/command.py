"""`worker bench` and `worker plan`: what is measured as tables, as JSON and as a picture."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final, Literal

from worker.bench.chunk_costs import chunk_costs
from worker.bench.machine import machine
from worker.bench.measure import measure_speed
from worker.bench.picture import Bar, bars
from worker.bench.plan import Costs, plan
from worker.demo.chat import ChatStream
from worker.errors import ConfigurationError, WorkerError
from worker.inference.artifact import BUILT_IN_MODEL
from worker.inference.engine import load_model
from worker.terminal.sentences import show

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from worker.bench.measure import Speed
    from worker.bench.plan import Plan

MESSAGES: Final = 20_000
_SECONDS_OF_AN_HOUR: Final = 3600
_SECONDS_OF_A_DAY: Final = 86_400


def bench(
    model: Path | None, texts: Path | None, as_json: Path | None, picture: Path | None
) -> int:
    """Measure a model on a file of texts, a message a line, or on made-up ones; prints a table.

    Raises:
        ConfigurationError: the file has no texts.
        WorkerError: a file cannot be read or written, or the model cannot be used.

    """
    artifact, messages = load_model(model or BUILT_IN_MODEL), read_texts(texts)
    for path in filter(None, (as_json, picture)):
        _write(path, "", mode="a")  # what cannot be written is said before minutes of measuring
    speed = measure_speed(artifact, messages)
    show(_table(speed))
    if as_json:
        _write(as_json, json.dumps(asdict(speed), indent=2) + "\n")
    if picture:
        _write(picture, _picture(speed))
    return 0


@dataclass(frozen=True, slots=True)
class Demand:
    """What is to be planned for: messages a second, and the time for 99% of them, in seconds.

    `round_trip` is what the brokers add to a chunk, in seconds; `core_hour` a price, if there is one.
    """

    rate: float
    p99: float
    round_trip: float
    core_hour: float | None = None


def print_plan(demand: Demand, model: Path | None, texts: Path | None) -> int:
    """Measure a model on texts, and print how many processes a rate needs.

    Raises:
        ConfigurationError: no number of processes is enough, or the file has no texts.
        WorkerError: the file cannot be read, or the model cannot be used.

    """
    artifact = load_model(model or BUILT_IN_MODEL)
    costs = Costs(chunk_costs(artifact, read_texts(texts)), demand.round_trip)
    found = plan(costs, demand.rate, demand.p99)
    show(_plan_table(demand, found, artifact.manifest.name))
    return 0


def _plan_table(demand: Demand, found: Plan, model: str) -> str:
    a_day = demand.rate * _SECONDS_OF_A_DAY
    lines = [
        f"{model} on {machine()}",
        f"{demand.rate:,.0f} messages a second, {a_day:,.0f} a day, 99% within {_milliseconds(demand.p99)}",
        f"  processes   {found.processes}, a core each, computing {found.busy:.0%} of the time",
        f"  partitions  {found.processes} at least; twice as many leave room to double",
        f"  p99         {_milliseconds(found.p99_by_formula)} by formula, {_milliseconds(found.p99_simulated)} simulated",
        f"  a chunk     {found.records:.1f} messages in {_milliseconds(found.cycle)}",
        f"  brokers     {_milliseconds(demand.round_trip)} of that (--round-trip)",
    ]
    if demand.core_hour is not None:
        price = found.processes * demand.core_hour / _SECONDS_OF_AN_HOUR / demand.rate * 1e6
        lines.append(f"  a million   {price:.4f} at {demand.core_hour:g} for a core and hour")
    lines += [
        "Assumed: messages come independently of each other, evenly over partitions, and as often",
        "known already as in these texts; each process has a core of its own; brokers keep up.",
    ]
    return "\n".join(lines)


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"


def read_texts(path: Path | None) -> list[str]:
    """Return the first texts of a file that are not empty; without one, those of an endless chat.

    Raises:
        ConfigurationError: the file has none, or is not UTF-8.
        WorkerError: it cannot be read.

    """
    if path is None:
        return list(islice(ChatStream(seed=1).texts(), MESSAGES))
    try:
        with path.open(encoding="utf-8") as file:
            texts = list(islice((line.rstrip("\r\n") for line in file if line.strip()), MESSAGES))
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8", "give a message a line") from None
    except OSError as error:
        raise WorkerError(f"cannot read {path}: {error.strerror}", "check the path") from None
    if not texts:
        raise ConfigurationError(f"{path} has no texts", "give a message a line")
    return texts


def _table(speed: Speed) -> str:
    lines = [
        f"{speed.model} on {speed.machine}",
        "",
        "engines: messages of 8 tokens a second, in full batches and one alone",
        *(
            f"  {each.engine:40}{each.full_per_second:8,.0f}{each.alone_per_second:8,.0f}"
            for each in speed.engines
        ),
        "",
        "batches: tokens, then texts at once x messages a second, and int8 operations in 10^9 a second",
        *_by_batch(speed),
        "",
        f"{speed.texts:,} messages, {speed.tokens_per_text:.1f} tokens each, one thread",
        f"  one by one         p50 {speed.alone_p50_ms:.2f} ms, p99 {speed.alone_p99_ms:.2f} ms",
        f"  nothing remembered {speed.without_memory_per_second:9,.0f} a second",
        f"  empty memory       {speed.with_memory_per_second:9,.0f} a second",
        f"  all remembered     {speed.remembered_per_second:9,.0f} a second",
        f"With an empty memory {speed.hit_rate:.1%} were known or repeated.",
    ]
    return "\n".join(lines)


def _by_batch(speed: Speed) -> Sequence[str]:
    """Return a line for each token length, and a column for each of the batch sizes they share."""
    lengths = sorted({each.tokens for each in speed.batches})
    lines = []
    for tokens in lengths:
        cells = (
            f"{each.batch:5} x {each.messages_per_second:6,.0f} ({each.gops:3.0f})"
            for each in speed.batches
            if each.tokens == tokens
        )
        lines.append(f"{tokens:8}" + "  ".join(cells))
    return lines


def _picture(speed: Speed) -> str:
    rates = {
        "one by one": 1000 / speed.alone_p50_ms,
        "nothing remembered": speed.without_memory_per_second,
        "empty memory": speed.with_memory_per_second,
        "all remembered": speed.remembered_per_second,
    }
    rows = [Bar(name, rate, f"{rate:,.0f}", stands_out=True) for name, rate in rates.items()]
    title = f"Messages a second on one thread, {speed.model} (logarithmic)"
    return bars(title, rows, speed.machine)


def _write(path: Path, content: str, mode: Literal["w", "a"] = "w") -> None:
    try:
        with path.open(mode, encoding="utf-8") as file:
            file.write(content)
    except OSError as error:
        raise WorkerError(f"cannot write {path}: {error.strerror}", "check the path") from None
