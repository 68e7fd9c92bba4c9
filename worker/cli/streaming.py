"""What stands beside `worker run`: check, health, create-topics, demo and view."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worker.cli.flags import (
    EPILOG,
    STREAM_SETTINGS,
    above_zero,
    add_command,
    add_settings,
    mark_as_printing,
    positive,
    settings_of,
)
from worker.errors import ConfigurationError, ExitCode

if TYPE_CHECKING:
    import argparse


def add_check(commands: Any) -> None:
    """Add `worker check`."""
    parser = add_command(
        commands,
        "check",
        "see whether `worker run` can work here, and what it could lose",
        _check,
        epilog="It prints a line for each finding: ok, warn, fail or skip (not looked at). The exit\n"
        "code is 1 where something failed. Nothing is sent to topics, and the group is not\n"
        "joined.\n\n" + EPILOG,
    )
    mark_as_printing(parser)
    add_settings(parser, *STREAM_SETTINGS)


def _check(options: argparse.Namespace) -> int:
    from worker.check.command import check

    return check(settings_of(options))


def add_health(commands: Any) -> None:
    """Add `worker health`."""
    parser = add_command(
        commands, "health", "ask the `worker run` of this host whether it is live", _health
    )
    add_settings(parser, "run.listen")


def _health(options: argparse.Namespace) -> int:
    from worker.telemetry.health import health

    return health(settings_of(options).run.listen)


def add_create_topics(commands: Any) -> None:
    """Add `worker create-topics`."""
    parser = add_command(
        commands, "create-topics", "create the topics that are not there yet", _create_topics
    )
    parser.add_argument(
        "--partitions",
        type=positive,
        metavar="N",
        help="The number of partitions of each new topic. By default the brokers decide.",
    )
    parser.add_argument(
        "--replicas",
        type=positive,
        metavar="N",
        help="The number of replicas of each new partition. By default the brokers decide.",
    )
    parser.add_argument(
        "--wait",
        type=positive,
        default=60,
        metavar="SECONDS",
        help="How long to wait for brokers that do not answer yet. (default: 60)",
    )
    add_settings(
        parser,
        *("kafka.brokers", "kafka.input_topics", "kafka.output_topic", "kafka.dead_letter_topic"),
    )


def _create_topics(options: argparse.Namespace) -> int:
    from worker.create_topics import create_topics

    settings = settings_of(options).kafka
    create_topics(settings, options.partitions, options.replicas, options.wait)
    return ExitCode.DONE


def add_demo(commands: Any) -> None:
    """Add `worker demo`."""
    parser = add_command(
        commands, "demo", "write example chat to the first input topic, without end", _demo
    )
    parser.add_argument(
        "--rate",
        type=above_zero,
        default=10,
        metavar="R",
        help="How many messages to write a second. (default: 10)",
    )
    parser.add_argument(
        "--count",
        type=positive,
        metavar="N",
        help="How many messages to write. By default there is no end.",
    )
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="The seed of the chat: the same seed gives the same messages. By default it is taken "
        "from the time.",
    )
    add_settings(parser, "kafka.brokers", "kafka.input_topics")


def _demo(options: argparse.Namespace) -> int:
    from worker.demo.produce import demo

    return demo(settings_of(options), options.rate, options.count, options.seed)


def add_view(commands: Any) -> None:
    """Add `worker view`."""
    parser = add_command(commands, "view", "show texts and labels side by side", _view)
    mark_as_printing(parser)
    parser.add_argument(
        "labels",
        nargs="?",
        metavar="LABELS",
        help="A file that `worker replay --include-text` wrote. By default standard input is read.",
    )
    parser.add_argument(
        "--follow",
        action="store_true",
        help="Show labels as they come to the output topic, instead of those of a file.",
    )
    add_settings(parser, "kafka.brokers", "kafka.output_topic")


def _view(options: argparse.Namespace) -> int:
    from worker.demo.view import follow, view

    if not options.follow:
        view(options.labels or "-")
    elif options.labels:
        raise ConfigurationError("LABELS and --follow exclude each other", "leave one of them out")
    else:
        follow(settings_of(options).kafka)
    return ExitCode.DONE
