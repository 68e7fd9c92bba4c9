"""`worker bench` and `worker plan`: how fast a model is on this machine, and what a rate needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.cli.flags import above_zero, add_command, mark_as_printing, seconds

if TYPE_CHECKING:
    import argparse


def add_bench(commands: Any) -> None:
    """Add `worker bench`."""
    summary = "measure how fast a model is on this machine"
    parser = add_command(commands, "bench", summary, _bench)
    mark_as_printing(parser)
    _add_measured(parser)
    parser.add_argument(
        "--json", metavar="FILE", type=Path, help="Also write all figures to this file, as JSON."
    )
    parser.add_argument(
        "--picture", metavar="FILE", type=Path, help="Also write a picture to this file, as SVG."
    )


def _bench(options: argparse.Namespace) -> int:
    from worker.bench.command import bench

    return bench(options.model, options.texts, options.json, options.picture)


def add_plan(commands: Any) -> None:
    """Add `worker plan`."""
    parser = add_command(
        commands,
        "plan",
        "say how many processes a rate of messages needs",
        _plan,
        epilog="It measures on this machine for half a minute. Try the plan before you rely on it.",
    )
    mark_as_printing(parser)
    _add_measured(parser)
    parser.add_argument(
        "--rate",
        type=above_zero,
        required=True,
        metavar="N",
        help="How many messages come a second at the peak.",
    )
    parser.add_argument(
        "--p99",
        type=seconds,
        required=True,
        metavar="TIME",
        help="The time in which 99%% of the messages must have a label, such as 20ms or 1s.",
    )
    parser.add_argument(
        "--round-trip",
        type=seconds,
        default=0.005,
        metavar="TIME",
        help="The time that fetching, acknowledging and committing add to a chunk. (default: 5ms)",
    )
    parser.add_argument(
        "--core-hour",
        type=above_zero,
        metavar="PRICE",
        help="The price of a core for an hour. With it the plan says what a million messages cost.",
    )


def _plan(options: argparse.Namespace) -> int:
    from worker.bench.command import Demand, print_plan

    demand = Demand(options.rate, options.p99, options.round_trip, options.core_hour)
    return print_plan(demand, options.model, options.texts)


def _add_measured(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "texts",
        nargs="?",
        metavar="TEXTS",
        type=Path,
        help="A file with a message a line, of which the first 20,000 are measured. By default the "
        "chat is made up.",
    )
    parser.add_argument(
        "--model",
        metavar="MODEL",
        type=Path,
        help="The model folder to measure. By default it is the built-in emotion model.",
    )
