"""What `worker replay` takes: the time to its first label, memory, and what a second process gives.

    python -m benchmarks.replay [--texts chat.txt] [--runs 5]

With the built-in model and, but for processes, with one of DistilBERT's size and random weights,
which neither speed nor memory depend on. Memory is the most that the process ever had, without the
caches. The outputs of one and of two processes are compared byte by byte. Medians of the runs, in
turn. Needs the extra `build`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.engine import SIZES, random_model
from benchmarks.ladder import artifact_of
from benchmarks.stream import texts_of
from worker.bench.machine import machine
from worker.inference.artifact import BUILT_IN_MODEL

if TYPE_CHECKING:
    from collections.abc import Sequence

MESSAGES = 20_000
VOCABULARY = 30_522
COMMAND = (sys.executable, "-m", "worker", "replay", "--no-cache", "--log-level", "error")
TEXT = ("-", "--format", "text")


def first_label(model: Path) -> float:
    """Return the seconds from the start of a process to its first label."""
    begun = time.perf_counter()
    with subprocess.Popen(  # noqa: S603 - this worker
        [*COMMAND, *TEXT, "--model", str(model)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdin  # noqa: S101 - they are pipes
        assert process.stdout  # noqa: S101 - PIPE was asked for, so it is there
        process.stdin.write(b"gg wp\n")
        process.stdin.flush()
        process.stdout.readline()
        seconds = time.perf_counter() - begun
        process.stdin.close()
    return seconds


def most_memory(model: Path, texts: Path) -> float:
    """Return the largest size of a process that labels all texts, in 10^6 bytes."""
    # getrusage would report the process that has started it.
    code = (
        "import sys; from worker.cli.entry import main; main(sys.argv[1:]);"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0], file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *COMMAND[3:], str(texts), "--model", str(model)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True)  # noqa: S603 - this worker
    return int(done.stderr.split()[-1]) * 1024 / 1e6


def seconds_of(texts: Path, processes: int, output: Path) -> float:
    begun = time.perf_counter()
    command = [*COMMAND, str(texts), "-o", str(output), "--overwrite"]
    subprocess.run(  # noqa: S603 - this worker
        [*command, "--processes", str(processes)], stderr=subprocess.DEVNULL, check=True
    )
    return time.perf_counter() - begun


def measure(models: dict[str, Path], texts: Path, runs: int) -> None:
    print(f"{'':24}first label, s     memory, 10^6 bytes")
    for name, model in models.items():
        seconds = statistics.median(first_label(model) for _ in range(runs))
        print(f"{name:24}{seconds:14.2f}{most_memory(model, texts):23.0f}", flush=True)


def compare_processes(texts: Path, messages: int, runs: int, folder: Path) -> None:
    outputs = [folder / "one.jsonl", folder / "two.jsonl"]
    rounds = [[seconds_of(texts, n, outputs[n - 1]) for n in (1, 2)] for _ in range(runs)]
    same = outputs[0].read_bytes() == outputs[1].read_bytes()
    one, two = (messages / statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(first / second for first, second in rounds)
    print(f"\n{messages} messages, start included: one process {one:,.0f}/s, two {two:,.0f}/s")
    print(f"ratio {ratio:.2f}, outputs {'the same' if same else 'DIFFERENT'}")


def read(texts: Sequence[str], folder: Path) -> Path:
    path = folder / "texts.txt"
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure worker replay.")
    parser.add_argument("--texts", type=Path, help="a message a line; default: made up")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    texts = texts_of(options.texts)
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        artifact_of(random_model(SIZES["base"], VOCABULARY), folder, texts[:MESSAGES])
        models = {"built-in model": BUILT_IN_MODEL, "DistilBERT's size": folder / "model"}
        measure(models, read(texts[:MESSAGES], folder), options.runs)
        many = [*texts, *texts, *texts]
        compare_processes(read(many, folder), len(many), options.runs, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
