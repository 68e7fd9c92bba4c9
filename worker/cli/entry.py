"""The program `worker`: its parser, and how errors and closed streams end it.

Each group of commands has a module beside this one. What a command needs is imported when it runs,
because `worker --help` must not wait for an engine.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, TextIO

from worker.cli import building, dead_letters, labelling, measuring, streaming
from worker.cli.flags import EPILOG
from worker.errors import ConfigurationError, ExitCode, WorkerError
from worker.terminal.sentences import escaped, say

if TYPE_CHECKING:
    from collections.abc import Sequence

_DESCRIPTION: Final = """\
Label chat messages with an int8 DistilBERT on CPU.

  worker run                                    label the events of Kafka topics
  worker check                                  see whether that will work
  worker demo, worker view --follow             write example chat to Kafka, see its labels
  worker dead-letters list                      see what could not be labelled, and send it back
  worker replay chat.jsonl -o labels.jsonl      label the messages of a file
  cat chat.txt | worker replay - --format text  label those of a pipe, to standard output
  worker finetune, worker prepare               make a model of your own
  worker evaluate MODEL test.tsv                measure a model's quality
  worker bench, worker plan                     measure its speed here, and what a rate needs
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    _occupy_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A pipe and a file get each line when it is printed, too.
        sys.stdout.reconfigure(line_buffering=True)
    try:
        try:
            return _run(arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:  # Whoever read standard output has seen enough.
        return ExitCode.FAILED
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        say(f"worker: {os.strerror(errno.ENOSPC)}")
        return ExitCode.FAILED
    finally:
        _drop_unwritable(sys.stdout)
        _drop_unwritable(sys.stderr)


def _occupy_closed_streams() -> None:
    """Open /dev/null where a standard stream is closed.

    The system gives the lowest free number to the next file or socket, which would then be taken
    for the stream by libraries and by processes that this one starts. Python has set the closed
    stream to None, by which commands see that there is nothing to read from or to print to. What
    goes to standard error gets lost, as was asked for.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003 - takes no name
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open to the end


def _drop_unwritable(stream: TextIO | None) -> None:
    """Lead a stream that cannot be written to nowhere: Python would complain at exit, with code 120."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(arguments: Sequence[str] | None) -> int:
    options = parser().parse_args(arguments)
    options.arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if options.only_prints:
            _need_standard_output()
        return int(options.command(options))
    except WorkerError as error:
        say(f"worker: {error}")
        wrong_usage = isinstance(error, ConfigurationError)
        return ExitCode.WRONG_USAGE if wrong_usage else ExitCode.FAILED
    except OSError as error:
        # A path that cannot even be asked about, such as one with a name that is too long.
        if error.filename is None:
            raise
        say(f"worker: cannot use {error.filename}: {error.strerror}")
        return ExitCode.FAILED
    except KeyboardInterrupt:
        say("worker: interrupted")
        return ExitCode.INTERRUPTED


def _need_standard_output() -> None:
    if sys.stdout is None:
        raise WorkerError(
            "standard output is closed, and all that this command does is to print",
            "lead it to /dev/null if the exit code is all that you need",
        )


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; each leaves in `command` what runs it."""
    parser = _Parser(
        prog="worker",
        description=_DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    labelling.add_replay(commands)
    labelling.add_run(commands)
    streaming.add_check(commands)
    streaming.add_health(commands)
    dead_letters.add_dead_letters(commands)
    streaming.add_create_topics(commands)
    streaming.add_demo(commands)
    streaming.add_view(commands)
    measuring.add_bench(commands)
    measuring.add_plan(commands)
    building.add_evaluate(commands)
    building.add_finetune(commands)
    building.add_prepare(commands)
    return parser


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong with arguments, which may be names of files, without showing them raw."""

    def error(self, message: str) -> NoReturn:
        super().error(escaped(message))


class _Version(argparse.Action):
    def __call__(self, *_: object) -> None:
        from worker import __version__

        # argparse prints help to standard error, too, where standard output is closed.
        print(f"worker {__version__}", file=sys.stdout or sys.stderr)
        sys.exit(ExitCode.DONE)
