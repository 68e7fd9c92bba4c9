"""What the parsers of several commands share: flags of settings, types of values, and how help ends.

The flags of settings come from the table of settings, whose descriptions are their help. Nothing
here is slow to import: help must wait neither for an engine nor for pydantic.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from worker.errors import EXIT_CODES
from worker.settings.table import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.settings.schema import Settings

EPILOG: Final = (
    """\
Settings come from --config FILE (TOML, see configs/worker.toml), from the environment
(WORKER_CACHE__DIRECTORY and the like), and from flags, in rising precedence.

Exit codes:
"""
    + "\n".join(f"  {code:<4d} {meaning}" for code, meaning in EXIT_CODES.items())
    + "\n"
)
# The settings of every command that runs a model, and of those that also use Kafka.
MODEL_SETTINGS: Final = ("model", "thresholds", "cache.enabled", "cache.directory")
STREAM_SETTINGS: Final = (
    *("kafka.brokers", "kafka.input_topics", "kafka.output_topic", "kafka.dead_letter_topic"),
    *("kafka.group", "kafka.guarantee", "kafka.start", "run.processes", "run.listen"),
    *MODEL_SETTINGS,
)
_SETTING: Final = "setting:"


def add_command(
    commands: Any,
    name: str,
    summary: str,
    run: Callable[[argparse.Namespace], int],
    **more: Any,
) -> argparse.ArgumentParser:
    """Add a command that `run` runs; `more` is for its parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        allow_abbrev=False,
        **{"formatter_class": argparse.RawDescriptionHelpFormatter} | more,
    )
    parser.set_defaults(command=run, only_prints=False)
    return parser


def mark_as_printing(parser: argparse.ArgumentParser) -> None:
    """Let a command that only prints be refused where standard output is closed."""
    parser.set_defaults(only_prints=True)


def add_settings(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add the flags of settings, those of the log, and the one that names a file of settings."""
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="The TOML file that settings are read from."
    )
    for name in (*names, "log.level", "log.format"):
        _add_setting(parser, name)


def _add_setting(parser: argparse.ArgumentParser, name: str) -> None:
    default, description, flag, _ = SETTINGS[name]
    if flag is None:
        raise ValueError(f"the table has no flag for {name}")
    options: dict[str, Any] = {"metavar": flag.rpartition("-")[2].upper()}
    if isinstance(default, bool):
        description = f"Sets {name} to {'false' if default else 'true'}. {description}"
        options = {"action": "store_const", "const": not default}
    elif name in _REPEATED:
        action, metavar = _REPEATED[name]
        description += " The flag may be repeated."
        options = {"action": action, "metavar": metavar}
    elif default is not None:
        shown = ",".join(default) if isinstance(default, tuple) else default
        description += f" (default: {shown})"
    parser.add_argument(
        flag, dest=f"{_SETTING}{name}", help=description.replace("%", "%%"), **options
    )


def add_child(parser: argparse.ArgumentParser) -> None:
    """Add the flag by which a process that this program starts learns that it is one of several."""
    parser.add_argument("--child", help=argparse.SUPPRESS)


def settings_of(options: argparse.Namespace) -> Settings:
    """Load the settings of a command line, and set the logs up as they say.

    Raises:
        ConfigurationError: the settings cannot work.

    """
    from worker.logs.logger import configure_logs
    from worker.settings.loading import load_settings

    flags: dict[str, Any] = {}
    for name, value in vars(options).items():
        if name.startswith(_SETTING) and value is not None:
            *groups, leaf = name.removeprefix(_SETTING).split(".")
            group = flags
            for part in groups:
                group = group.setdefault(part, {})
            group[leaf] = value
    settings = load_settings(options.config, flags)
    configure_logs(settings.log.level, settings.log.format)
    return settings


class _Threshold(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002 - argparse passes it by name
    ) -> None:
        label, equals, value = values.rpartition("=")
        if not equals:
            parser.error("argument --threshold: expected LABEL=VALUE, such as joy=0.4")
        thresholds = getattr(namespace, self.dest) or {}
        setattr(namespace, self.dest, thresholds | {label: value})


class _Joined(argparse.Action):
    """Adds names to those of the same flag before, separated by commas as each flag takes them."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 - argparse passes it by position
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002 - argparse passes it by name
    ) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, values if before is None else f"{before},{values}")


_REPEATED: Final = {"thresholds": (_Threshold, "LABEL=VALUE"), "input.keep": (_Joined, "FIELDS")}


def positive(text: str) -> int:
    """Read a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number from 1")
    return int(text)


def above_zero(text: str) -> float:
    """Read a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError("must be a number above 0")
    return number


def seconds(text: str) -> float:
    """Read a time with its unit; returns seconds."""
    for unit, length in (("ms", 0.001), ("s", 1.0)):
        if text.endswith(unit):
            return above_zero(text.removesuffix(unit)) * length
    raise argparse.ArgumentTypeError(f"expected a time such as 20ms or 1s, not {text!r}")
