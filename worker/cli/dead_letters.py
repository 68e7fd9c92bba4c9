"""`worker dead-letters`: list, show, redrive and skip."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from worker.cli.flags import (
    EPILOG,
    add_command,
    add_settings,
    mark_as_printing,
    positive,
    settings_of,
)
from worker.errors import ConfigurationError, ExitCode
from worker.events.records import ErrorKind

if TYPE_CHECKING:
    import argparse

    from worker.dead_letters.letters import Filters

_SUMMARY: Final = "look at what could not be labelled, and send it back in"


def add_dead_letters(commands: Any) -> None:
    """Add `worker dead-letters` and what is below it."""
    parser = commands.add_parser(
        "dead-letters",
        help=_SUMMARY,
        description=f"{_SUMMARY[0].upper()}{_SUMMARY[1:]}.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_list(commands)
    _add_show(commands)
    _add_redrive(commands)
    _add_skip(commands)


def _add_list(commands: Any) -> None:
    summary = "count dead letters, by kind and source"
    parser = add_command(commands, "list", summary, _list)
    mark_as_printing(parser)
    _add_filters(parser)


def _list(options: argparse.Namespace) -> int:
    from worker.dead_letters.listing import list_letters

    list_letters(settings_of(options).kafka, options.files, _filters(options))
    return ExitCode.DONE


def _add_show(commands: Any) -> None:
    summary = "show dead letters, a line each"
    parser = add_command(commands, "show", summary, _show)
    mark_as_printing(parser)
    parser.add_argument(
        "--payload", action="store_true", help="Show the key, headers and value of each, too."
    )
    parser.add_argument(
        "--limit",
        type=positive,
        default=100,
        metavar="N",
        help="How many dead letters to show at most. (default: 100)",
    )
    _add_filters(parser)


def _show(options: argparse.Namespace) -> int:
    from worker.dead_letters.listing import show_letters

    settings, filters = settings_of(options).kafka, _filters(options)
    show_letters(settings, options.files, filters, options.limit, payload=options.payload)
    return ExitCode.DONE


def _add_redrive(commands: Any) -> None:
    parser = add_command(
        commands,
        "redrive",
        "send records back to the input topics that they came from",
        _redrive,
        epilog="It says what would be sent, and sends only once that is confirmed. Records go out\n"
        "as they were, with the header worker-rounds, in transactions: killed, the same\n"
        "command continues, and each goes out once. They go behind what has come since, so\n"
        "the order within their key is lost. What became a dead letter after the start is\n"
        "left to the next redrive. Receipts are kept on the dead-letter topic. Only with --topic\n"
        "do records go to a topic that is not among kafka.input_topics.\n\n"
        "Dead letters of files are written to -o, for another `worker replay`. The header of\n"
        "CSV and TSV is not among them.\n\n" + EPILOG,
    )
    _add_yes(parser)
    parser.add_argument(
        "--again", action="store_true", help="Also send what was sent back before by a redrive."
    )
    parser.add_argument(
        "--max-rounds",
        type=positive,
        default=3,
        metavar="N",
        help="Leave out records that were sent back so often already. (default: 3)",
    )
    parser.add_argument(
        "-o",
        dest="output",
        metavar="OUT",
        type=Path,
        help="The file that the original lines are written to, where dead letters of files are "
        "given.",
    )
    _add_filters(parser, "kafka.input_topics")


def _redrive(options: argparse.Namespace) -> int:
    from worker.dead_letters.redrive import Selection, redrive
    from worker.dead_letters.rewrite import rewrite

    if bool(options.files) != bool(options.output):
        raise ConfigurationError(
            "FILE and -o need each other", "dead letters of files go back into a file"
        )
    settings, filters = settings_of(options).kafka, _filters(options)
    if options.output:
        rewrite(options.files, options.output, filters, again=options.again, yes=options.yes)
    else:
        redrive(settings, Selection(filters, options.max_rounds, options.again), yes=options.yes)
    return ExitCode.DONE


def _add_skip(commands: Any) -> None:
    parser = add_command(
        commands,
        "skip",
        "let the group go past a batch that cannot be decoded",
        _skip,
        epilog="Workers that meet such a batch end, and say its topic, partition and offset.",
    )
    parser.add_argument("topic", metavar="TOPIC", help="The topic that the batch is in.")
    parser.add_argument(
        "partition", metavar="PARTITION", type=int, help="The partition that the batch is in."
    )
    parser.add_argument("offset", metavar="OFFSET", type=int, help="The offset of the batch.")
    _add_yes(parser)
    add_settings(
        parser,
        *("kafka.brokers", "kafka.input_topics", "kafka.dead_letter_topic", "kafka.group"),
    )


def _skip(options: argparse.Namespace) -> int:
    from worker.dead_letters.skip import skip
    from worker.events.records import TopicPlace

    place = TopicPlace(options.topic, options.partition, options.offset)
    skip(settings_of(options).kafka, place, yes=options.yes)
    return ExitCode.DONE


def _add_yes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="Do it without asking first.")


def _add_filters(parser: argparse.ArgumentParser, *more: str) -> None:
    """Add what chooses dead letters."""
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        type=Path,
        help="A file of dead letters that `worker replay` wrote. By default those of the "
        "dead-letter topic are taken.",
    )
    which = parser.add_argument_group("which dead letters: those for which all that is given holds")
    which.add_argument(
        "--kind",
        action="append",
        default=[],
        choices=[str(kind) for kind in ErrorKind],
        metavar="KIND",
        help=f"Those of this kind: {', '.join(ErrorKind)}. The flag may be repeated.",
    )
    which.add_argument("--topic", help="Those of records of this topic, or of lines of this file.")
    which.add_argument(
        "--partition", type=int, metavar="N", help="Those of records of this partition."
    )
    which.add_argument(
        "--offset",
        type=int,
        metavar="N",
        help="Those of records with this offset, or of lines with this number.",
    )
    which.add_argument(
        "--since",
        metavar="TIME",
        help="Those that became dead letters at this time or later: 2025-01-31, or "
        "2025-01-31T18:30+01:00. A time without an offset is in UTC.",
    )
    which.add_argument(
        "--until",
        metavar="TIME",
        help="Those that became dead letters before this time, which is written as for --since.",
    )
    add_settings(parser, "kafka.brokers", *more, "kafka.dead_letter_topic")


def _filters(options: argparse.Namespace) -> Filters:
    from worker.dead_letters.letters import Filters, moment

    return Filters(
        kinds=tuple(options.kind),
        source=options.topic,
        partition=options.partition,
        offset=options.offset,
        since=moment(options.since),
        until=moment(options.until),
    )
