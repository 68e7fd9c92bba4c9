"""`worker bench`: the speed of a model on this machine as a table, as JSON and as a picture."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Final

from worker.artifact import BUILT_IN_MODEL, load_artifact
from worker.bench.measure import measure_speed
from worker.bench.picture import Bar, bars
from worker.demo.chat import ChatStream
from worker.errors import ConfigurationError, WorkerError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from worker.bench.measure import Speed
    from worker.settings import Settings

MESSAGES: Final = 20_000


def bench(
    settings: Settings, texts: Path | None, as_json: Path | None, picture: Path | None
) -> int:
    """Measure the model of the settings on a file of texts, a message a line, or made-up ones.

    Raises:
        ConfigurationError: the file has no texts.
        WorkerError: a file cannot be read or written, or the model cannot be used.

    """
    artifact = load_artifact(settings.model or BUILT_IN_MODEL, settings.thresholds)
    speed = measure_speed(artifact, read_texts(texts))
    print(_table(speed))
    if as_json:
        _write(as_json, json.dumps(asdict(speed), indent=2) + "\n")
    if picture:
        _write(picture, _picture(speed))
    return 0


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
        f"fastest int8 product: {speed.peak_gops:.0f} GOPS a core",
        "",
        "messages a second and share of that, by tokens and batch",
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
    lengths = sorted({each.tokens for each in speed.batches})
    lines = []
    for tokens in lengths:
        cells = (
            f"{each.batch:4} at once {each.messages_per_second:7,.0f}/s {each.share_of_peak:4.0%}"
            for each in speed.batches
            if each.tokens == tokens
        )
        lines.append(f"  {tokens:3} tokens  " + "  ".join(cells))
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


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise WorkerError(f"cannot write {path}: {error.strerror}", "check the path") from None
