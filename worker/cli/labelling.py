"""`worker run` and `worker replay`: labelling the messages of Kafka topics, and of files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.cli.flags import (
    EPILOG,
    MODEL_SETTINGS,
    STREAM_SETTINGS,
    add_child,
    add_command,
    add_settings,
    settings_of,
)

if TYPE_CHECKING:
    import argparse


def add_run(commands: Any) -> None:
    """Add `worker run`."""
    parser = add_command(
        commands,
        "run",
        "label the events of Kafka topics",
        _run,
        epilog="SIGTERM makes it finish the chunk in hand, commit, leave the group and exit with 0.\n"
        "Passwords come from the environment or from files, see configs/worker.toml.\n\n" + EPILOG,
    )
    add_settings(parser, *STREAM_SETTINGS)
    add_child(parser)


def _run(options: argparse.Namespace) -> int:
    from worker.run.supervisor import run

    return run(settings_of(options), options.arguments, options.child)


def add_replay(commands: Any) -> None:
    """Add `worker replay`."""
    parser = add_command(
        commands,
        "replay",
        "label the messages of files or of a pipe",
        _replay,
        epilog="Killed at any moment, the same command continues, and the output ends the same to\n"
        "the byte. That needs -o, and files as inputs.\n\n" + EPILOG,
    )
    files = parser.add_argument_group("files")
    files.add_argument(
        "inputs",
        nargs="+",
        metavar="IN",
        help="A file of messages: JSON lines, plain text with a message a line, or CSV or TSV with "
        "a header, each also gzipped. - is standard input.",
    )
    files.add_argument(
        "-o",
        dest="output",
        metavar="OUT",
        type=Path,
        help="The file that labels are written to, as JSON lines. By default they go to standard "
        "output.",
    )
    files.add_argument(
        "--dead-letters",
        metavar="FILE",
        type=Path,
        help="The file that dead letters are written to: messages that could not be labelled, each "
        "with the reason. By default it is OUT.dead.jsonl, or dead-letters.jsonl without -o.",
    )
    files.add_argument(
        "--format",
        choices=["jsonl", "text", "csv", "tsv"],
        help="The format of all inputs. By default the name of each file tells.",
    )
    files.add_argument(
        "--overwrite",
        action="store_true",
        help="Start anew and replace the output, whatever it holds.",
    )
    add_settings(
        parser,
        *("input.text_field", "input.id_field", "input.keep", "include_text", "input.max_bytes"),
        "run.processes",
        *MODEL_SETTINGS,
    )
    add_child(parser)


def _replay(options: argparse.Namespace) -> int:
    from worker.replay.command import ReplayFiles, replay
    from worker.transports.files.reading import Format

    settings = settings_of(options)
    form = Format(options.format) if options.format else None
    output = None if options.output == Path("-") else options.output
    files = ReplayFiles(options.inputs, output, options.dead_letters, form, options.overwrite)
    return replay(files, settings, options.arguments, options.child)
