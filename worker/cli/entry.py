"""The command line: what there is to call, and what becomes of errors. No logic.

Imports stand where they are used: `worker --help` must not wait for an engine.
"""

from __future__ import annotations

import argparse
import errno
import io
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from worker.errors import ConfigurationError, WorkerError
from worker.terminal.sentences import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.dead_letters.letters import Filters
    from worker.evaluation.examples import ExampleFormat
    from worker.settings.schema import Settings

_DESCRIPTION: Final = """\
Label chat messages with an int8 DistilBERT on CPU.

  worker run                                    label the events of Kafka topics
  worker check                                  see whether that will work
  worker demo, worker view --follow             write example chat to Kafka, see its labels
  worker dead-letters list                      what could not be labelled, and sending it back
  worker replay chat.jsonl -o labels.jsonl      label the messages of a file
  cat chat.txt | worker replay - --format text  or of a pipe, to standard output
  worker finetune, worker prepare               make a model of your own
  worker evaluate MODEL test.tsv                measure a model's quality
  worker bench, worker plan                     measure its speed here, and what a rate needs
"""
_EPILOG: Final = """\
Settings come from --config FILE (TOML, see configs/worker.toml), from the environment
(WORKER_CACHE__DIRECTORY and the like), and from flags, in rising precedence.

Exit codes:
  0    done
  1    failed: standard error says what and where
  2    wrong usage or configuration; nothing was done
  3    done, but some records became dead letters
  130  interrupted by SIGINT (143: SIGTERM), and ready to be continued
"""
_BUILD_PACKAGES: Final = ("accelerate", "emoji", "onnx", "safetensors", "torch", "transformers")
_FAILED: Final = 1
_WRONG_USAGE: Final = 2
_INTERRUPTED: Final = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for good
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
        return _FAILED
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        say(f"worker: {os.strerror(errno.ENOSPC)}")
        return _FAILED
    finally:
        _drop_unwritable(sys.stdout)
        _drop_unwritable(sys.stderr)


def _drop_unwritable(stream: TextIO | None) -> None:
    """Lead a stream nowhere that cannot be written, or Python complains at exit, with code 120."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    options.arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return int(options.command(options))
    except WorkerError as error:
        say(f"worker: {error}")
        return _WRONG_USAGE if isinstance(error, ConfigurationError) else _FAILED
    except KeyboardInterrupt:
        say("worker: interrupted")
        return _INTERRUPTED


def _replay(options: argparse.Namespace) -> int:
    from worker.replay.command import ReplayFiles, replay
    from worker.transports.files.reading import Format

    settings = _settings(options)
    form = Format(options.format) if options.format else None
    output = None if options.output == Path("-") else options.output
    files = ReplayFiles(options.inputs, output, options.dead_letters, form, options.overwrite)
    return replay(files, settings, options.arguments, options.child)


def _stream(options: argparse.Namespace) -> int:
    from worker.run.supervisor import run

    return run(_settings(options), options.arguments, options.child)


def _bench(options: argparse.Namespace) -> int:
    from worker.bench.command import bench

    return bench(options.model, options.texts, options.json, options.picture)


def _plan(options: argparse.Namespace) -> int:
    from worker.bench.command import Wish, plan_for

    wish = Wish(options.rate, options.p99, options.round_trip, options.core_hour)
    return plan_for(wish, options.model, options.texts)


def _check(options: argparse.Namespace) -> int:
    from worker.check.command import check

    return check(_settings(options))


def _list_letters(options: argparse.Namespace) -> int:
    from worker.dead_letters.listing import list_letters

    list_letters(_settings(options).kafka, options.files, _filters(options))
    return 0


def _show_letters(options: argparse.Namespace) -> int:
    from worker.dead_letters.listing import show_letters

    settings, filters = _settings(options).kafka, _filters(options)
    show_letters(settings, options.files, filters, options.limit, payload=options.payload)
    return 0


def _redrive(options: argparse.Namespace) -> int:
    from worker.dead_letters.redrive import Selection, redrive
    from worker.dead_letters.rewrite import rewrite

    if bool(options.files) != bool(options.output):
        raise ConfigurationError(
            "FILE and -o need each other", "dead letters of files go back into a file"
        )
    settings, filters = _settings(options).kafka, _filters(options)
    if options.output:
        rewrite(options.files, options.output, filters, again=options.again, yes=options.yes)
    else:
        redrive(settings, Selection(filters, options.max_rounds, options.again), yes=options.yes)
    return 0


def _skip(options: argparse.Namespace) -> int:
    from worker.dead_letters.skip import skip
    from worker.events.records import TopicPlace

    place = TopicPlace(options.topic, options.partition, options.offset)
    skip(_settings(options).kafka, place, yes=options.yes)
    return 0


def _view(options: argparse.Namespace) -> int:
    from worker.demo.view import follow, view

    if not options.follow:
        view(options.labels or "-")
    elif options.labels:
        raise ConfigurationError("LABELS and --follow exclude each other", "leave one of them out")
    else:
        follow(_settings(options).kafka)
    return 0


def _create_topics(options: argparse.Namespace) -> int:
    from worker.create_topics import create_topics

    settings = _settings(options).kafka
    create_topics(settings, options.partitions, options.replicas, options.wait)
    return 0


def _health(options: argparse.Namespace) -> int:
    from worker.telemetry.health import health

    return health(_settings(options).run.listen)


def _demo(options: argparse.Namespace) -> int:
    from worker.demo.produce import demo

    return demo(_settings(options), options.rate, options.count, options.seed)


def _evaluate(options: argparse.Namespace) -> int:
    import json

    from worker.evaluation.command import evaluate
    from worker.evaluation.quality import quality_table

    quality = evaluate(options.model, options.file, _example_format(options))
    print(json.dumps(quality.model_dump(), indent=2) if options.json else quality_table(quality))
    return 0


def _finetune(options: argparse.Namespace) -> int:
    _need_build_extra()
    from worker.build.training import FinetuneOptions, read_training_data
    from worker.evaluation.quality import quality_table
    from worker.inference.decisions import Task

    training = FinetuneOptions(
        train=options.train,
        dev=options.dev,
        output=options.output,
        form=_example_format(options),
        base=options.base,
        task=Task(options.task) if options.task != "auto" else None,
        emoji=options.emoji,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        weight_decay=options.weight_decay,
        max_tokens=options.max_tokens,
        patience=options.patience,
        precision=options.precision,
        seed=options.seed,
    )
    data = read_training_data(training)
    # Only now, because it loads torch.
    from worker.build.finetune import finetune

    table = quality_table(finetune(training, data))
    print(f"{table}\n\nwrote {options.output}; next: worker prepare {options.output}")
    return 0


def _prepare(options: argparse.Namespace) -> int:
    _need_build_extra()
    from worker.build.prepare import GateLimits, PrepareOptions, prepare

    manifest = prepare(
        PrepareOptions(
            checkpoint=options.checkpoint,
            output=options.output,
            name=options.name,
            max_tokens=options.max_tokens,
            calibrate_on=options.calibrate,
            evaluate_on=options.eval,
            form=_example_format(options),
            limits=GateLimits(options.max_f1_loss, options.min_agreement, options.max_logit_error),
        )
    )
    quality = manifest.quality
    print(f"wrote {options.output}")
    if quality:
        print(
            f"macro F1 {quality.int8.macro_f1:.4f} in int8, {quality.fp32.macro_f1:.4f} in fp32; "
            f"{quality.decision_agreement:.2%} of decisions and "
            f"{quality.label_set_agreement:.2%} of label sets agree"
        )
    return 0


def _settings(options: argparse.Namespace) -> Settings:
    from worker.logs.logger import configure_logs
    from worker.settings.schema import load_settings, warn_of_unknown_variables

    flags: dict[str, Any] = {}
    for name, value in vars(options).items():
        if name.startswith("setting:") and value is not None:
            *groups, leaf = name.removeprefix("setting:").split(".")
            group = flags
            for part in groups:
                group = group.setdefault(part, {})
            group[leaf] = value
    settings = load_settings(options.config, flags)
    configure_logs(settings.log.level, settings.log.format)
    warn_of_unknown_variables()
    return settings


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


def _example_format(options: argparse.Namespace) -> ExampleFormat:
    from worker.evaluation.examples import ExampleFormat

    return ExampleFormat(options.text_field, options.label_field, options.label_names)


def _need_build_extra() -> None:
    from importlib.util import find_spec

    if any(find_spec(name) is None for name in _BUILD_PACKAGES):
        raise ConfigurationError(
            "building a model needs packages that running one does not",
            "install the extra: pip install -c constraints.txt '.[build]'",
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="worker",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_replay(commands)
    _add_run(commands)
    _add_check(commands)
    _add_health(commands)
    _add_dead_letters(commands)
    _add_create_topics(commands)
    _add_demo(commands)
    _add_view(commands)
    _add_bench(commands)
    _add_plan(commands)
    _add_evaluate(commands)
    _add_finetune(commands)
    _add_prepare(commands)
    return parser


class _Version(argparse.Action):
    def __call__(self, *_: object) -> None:
        from worker import __version__

        print(f"worker {__version__}")
        sys.exit(0)


def _command(
    commands: Any, name: str, summary: str, run: Any, **more: Any
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        allow_abbrev=False,
        **more,
    )
    parser.set_defaults(command=run)
    return parser


def _add_replay(commands: Any) -> None:
    parser = _command(
        commands,
        "replay",
        "label the messages of files or of a pipe",
        _replay,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Killed at any moment, the same command continues, and the output ends the same to\n"
        "the byte. That needs -o, and files as inputs.\n\n" + _EPILOG,
    )
    files = parser.add_argument_group("files")
    files.add_argument(
        "inputs",
        nargs="+",
        metavar="IN",
        help="JSON lines, plain text (a message a line), CSV or TSV with a header, each also "
        "gzipped; - is standard input",
    )
    files.add_argument(
        "-o", dest="output", metavar="OUT", type=Path, help="default: standard output"
    )
    files.add_argument(
        "--dead-letters",
        metavar="FILE",
        type=Path,
        help="what could not be labelled; default: OUT.dead.jsonl, or dead-letters.jsonl without -o",
    )
    files.add_argument(
        "--format", choices=["jsonl", "text", "csv", "tsv"], help="default: by the file's name"
    )
    files.add_argument("--overwrite", action="store_true", help="start anew, whatever is there")
    _add_setting(parser, "--text-field", "input.text_field", "the field that holds the text")
    _add_setting(parser, "--id-field", "input.id_field", "the field that holds the id")
    parser.add_argument(
        "--keep",
        dest="setting:input.keep",
        action="extend",
        nargs="+",
        metavar="FIELD",
        help="fields to copy to the output",
    )
    parser.add_argument(
        "--include-text",
        dest="setting:include_text",
        action="store_true",
        default=None,
        help="copy the text to the output",
    )
    _add_setting(parser, "--max-bytes", "input.max_bytes", "a longer line becomes a dead letter")
    _add_processes(parser, "processes that label")
    _add_running(parser)


def _add_run(commands: Any) -> None:
    parser = _command(
        commands,
        "run",
        "label the events of Kafka topics",
        _stream,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="SIGTERM finishes the chunk in hand, commits, leaves the group and exits with 0.\n"
        "Passwords come from the environment or from files, see configs/worker.toml.\n\n" + _EPILOG,
    )
    _add_streaming(parser)


def _add_check(commands: Any) -> None:
    parser = _command(
        commands,
        "check",
        "see whether `worker run` can work here, and what it could lose",
        _check,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="A line for each finding: ok, warn, fail or skip (not looked at). The exit code is 1\n"
        "where something failed. Nothing is sent to topics, and the group is not joined.\n\n"
        + _EPILOG,
    )
    _add_streaming(parser)


def _add_streaming(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the commands that need Kafka and a model."""
    _add_setting(parser, "--brokers", "kafka.brokers", "host:port, separated by commas")
    _add_setting(parser, "--input-topics", "kafka.input_topics", "separated by commas")
    _add_setting(parser, "--output-topic", "kafka.output_topic", "where labels go")
    _add_setting(parser, "--dead-letter-topic", "kafka.dead_letter_topic", "and dead letters")
    _add_setting(parser, "--group", "kafka.group", "the consumer group")
    _add_setting(parser, "--guarantee", "kafka.guarantee", "at-least-once or exactly-once")
    _add_setting(parser, "--start", "kafka.start", "of a new group: earliest or latest")
    _add_processes(parser, "consumer processes")
    _add_setting(parser, "--listen", "run.listen", "host:port of metrics and health, or off")
    _add_running(parser)


def _add_processes(parser: argparse.ArgumentParser, what: str) -> None:
    _add_setting(parser, "--processes", "run.processes", what)
    # One of them is told so by the process that starts it.
    parser.add_argument("--child", help=argparse.SUPPRESS)


def _add_running(parser: argparse.ArgumentParser) -> None:
    """Add the flags of every command that runs a model."""
    _add_setting(parser, "--model", "model", "a model folder; default: the built-in emotion model")
    parser.add_argument(
        "--threshold",
        dest="setting:thresholds",
        action=_Threshold,
        metavar="LABEL=VALUE",
        help="override a threshold of the model; may be repeated",
    )
    parser.add_argument(
        "--no-cache",
        dest="setting:cache.enabled",
        action="store_false",
        default=None,
        help="remember nothing, compute everything",
    )
    _add_setting(parser, "--cache-directory", "cache.directory", "default: ~/.cache/worker")
    _add_config(parser)


def _add_config(parser: argparse.ArgumentParser) -> None:
    """Add the flags of every command that has settings."""
    parser.add_argument("--config", metavar="FILE", type=Path, help="settings as TOML")
    _add_setting(parser, "--log-level", "log.level", "debug, info, warning or error")
    _add_setting(parser, "--log-format", "log.format", "auto, console or json")


class _Threshold(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002 - argparse's own form
    ) -> None:
        label, equals, value = values.rpartition("=")
        if not equals:
            parser.error("argument --threshold: expected LABEL=VALUE, such as joy=0.4")
        thresholds = getattr(namespace, self.dest) or {}
        setattr(namespace, self.dest, thresholds | {label: value})


def _add_setting(parser: argparse.ArgumentParser, flag: str, setting: str, text: str) -> None:
    metavar = flag.rpartition("-")[2].upper()
    parser.add_argument(flag, dest=f"setting:{setting}", metavar=metavar, help=text)


def _add_dead_letters(commands: Any) -> None:
    parser = commands.add_parser(
        "dead-letters",
        help="look at what could not be labelled, and send it back in",
        description="Look at what could not be labelled, and send it back in.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    parser = _command(commands, "list", "count dead letters, by kind and source", _list_letters)
    _add_letters(parser)
    parser = _command(commands, "show", "show dead letters, a line each", _show_letters)
    parser.add_argument("--payload", action="store_true", help="keys, headers and values, too")
    parser.add_argument(
        "--limit", type=_positive, default=100, metavar="N", help="how many; default: 100"
    )
    _add_letters(parser)
    _add_redrive(commands)
    _add_skip(commands)


def _add_redrive(commands: Any) -> None:
    parser = _command(
        commands,
        "redrive",
        "send records back to the topics that they came from",
        _redrive,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="It says what would be sent, and sends only once that is confirmed. Records go out\n"
        "as they were, with the header worker-rounds, in transactions: killed, the same\n"
        "command continues, and each goes out once. They go behind what has come since, so\n"
        "the order within their key is lost. What became a dead letter after the start is\n"
        "left to the next redrive. Receipts are kept on the dead-letter topic.\n\n"
        "Letters of files go to -o, for another worker replay; the header of CSV and TSV is\n"
        "not among them.\n\n" + _EPILOG,
    )
    parser.add_argument("--yes", action="store_true", help="do it without asking")
    parser.add_argument("--again", action="store_true", help="also what was sent back before")
    parser.add_argument(
        "--max-rounds",
        type=_positive,
        default=3,
        metavar="N",
        help="leave out what was sent back so often already; default: 3",
    )
    parser.add_argument("-o", dest="output", metavar="OUT", type=Path, help="for lines of files")
    _add_letters(parser)


def _add_skip(commands: Any) -> None:
    parser = _command(
        commands, "skip", "let the group go past a batch that cannot be decoded", _skip
    )
    parser.add_argument("topic", metavar="TOPIC", help="and partition and offset: what workers say")
    parser.add_argument("partition", metavar="PARTITION", type=int)
    parser.add_argument("offset", metavar="OFFSET", type=int)
    parser.add_argument("--yes", action="store_true", help="do it without asking")
    _add_setting(parser, "--input-topics", "kafka.input_topics", "separated by commas")
    _add_setting(parser, "--group", "kafka.group", "the consumer group")
    _add_letter_topic(parser)


def _add_letters(parser: argparse.ArgumentParser) -> None:
    """Add what chooses dead letters."""
    from worker.events.records import ErrorKind

    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        type=Path,
        help="dead letters of worker replay; default: the dead-letter topic",
    )
    which = parser.add_argument_group("which: all that is given must hold")
    which.add_argument(
        "--kind",
        action="append",
        default=[],
        choices=[str(kind) for kind in ErrorKind],
        metavar="KIND",
        help=f"{', '.join(ErrorKind)}; may be repeated",
    )
    which.add_argument("--topic", help="that the record came from, or the file")
    which.add_argument("--partition", type=int, metavar="N", help="of that topic")
    which.add_argument("--offset", type=int, metavar="N", help="in that partition, or the line")
    which.add_argument(
        "--since", metavar="TIME", help="dead since then: 2025-01-31, or 2025-01-31T18:30+01:00"
    )
    which.add_argument("--until", metavar="TIME", help="dead before; UTC without an offset")
    _add_letter_topic(parser)


def _add_letter_topic(parser: argparse.ArgumentParser) -> None:
    _add_setting(parser, "--brokers", "kafka.brokers", "host:port, separated by commas")
    _add_setting(parser, "--dead-letter-topic", "kafka.dead_letter_topic", "where they are")
    _add_config(parser)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number from 1")
    return int(text)


def _above_zero(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError("must be a number above 0")
    return number


def _add_view(commands: Any) -> None:
    parser = _command(commands, "view", "show texts and labels side by side", _view)
    parser.add_argument(
        "labels",
        nargs="?",
        metavar="LABELS",
        help="what replay --include-text wrote; default: standard input",
    )
    parser.add_argument(
        "--follow", action="store_true", help="labels as they come to the output topic, instead"
    )
    _add_setting(parser, "--brokers", "kafka.brokers", "host:port, separated by commas")
    _add_setting(parser, "--output-topic", "kafka.output_topic", "where labels are")
    _add_config(parser)


def _add_bench(commands: Any) -> None:
    parser = _command(commands, "bench", "measure how fast a model is on this machine", _bench)
    _add_measured(parser)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures, too")
    parser.add_argument("--picture", metavar="FILE", type=Path, help="write a picture (SVG), too")


def _add_plan(commands: Any) -> None:
    parser = _command(
        commands,
        "plan",
        "say how many processes a rate of messages needs",
        _plan,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Measures on this machine, for half a minute. Try the plan before you rely on it.",
    )
    _add_measured(parser)
    parser.add_argument(
        "--rate",
        type=_above_zero,
        required=True,
        metavar="N",
        help="messages a second, at the peak",
    )
    parser.add_argument(
        "--p99",
        type=_seconds,
        required=True,
        metavar="TIME",
        help="in which 99%% of them have a label, such as 20ms or 1s",
    )
    parser.add_argument(
        "--round-trip",
        type=_seconds,
        default=0.005,
        metavar="TIME",
        help="what fetching, acknowledging and committing add to a chunk (5ms)",
    )
    parser.add_argument(
        "--core-hour",
        type=_above_zero,
        metavar="PRICE",
        help="to say what a million messages cost",
    )


def _add_measured(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "texts",
        nargs="?",
        metavar="TEXTS",
        type=Path,
        help="a file with a message a line, of which the first 20,000 count; default: made-up chat",
    )
    parser.add_argument(
        "--model", metavar="MODEL", type=Path, help="a model folder; default: the built-in model"
    )


def _seconds(text: str) -> float:
    """Read a time with its unit."""
    for unit, seconds in (("ms", 0.001), ("s", 1.0)):
        if text.endswith(unit):
            return _above_zero(text.removesuffix(unit)) * seconds
    raise argparse.ArgumentTypeError(f"expected a time such as 20ms or 1s, not {text!r}")


def _add_health(commands: Any) -> None:
    parser = _command(
        commands, "health", "ask the `worker run` of this host whether it is live", _health
    )
    _add_setting(parser, "--listen", "run.listen", "host:port where it answers")
    _add_config(parser)


def _add_create_topics(commands: Any) -> None:
    parser = _command(
        commands, "create-topics", "create the topics that are not there yet", _create_topics
    )
    parser.add_argument(
        "--partitions", type=_positive, metavar="N", help="of each; default: the brokers'"
    )
    parser.add_argument(
        "--replicas", type=_positive, metavar="N", help="of each partition; default: the brokers'"
    )
    parser.add_argument(
        "--wait",
        type=_positive,
        default=60,
        metavar="SECONDS",
        help="for brokers that do not answer yet; default: 60",
    )
    _add_setting(parser, "--input-topics", "kafka.input_topics", "separated by commas")
    _add_setting(parser, "--output-topic", "kafka.output_topic", "where labels go")
    _add_letter_topic(parser)


def _add_demo(commands: Any) -> None:
    parser = _command(commands, "demo", "write example chat to the input topic, without end", _demo)
    parser.add_argument(
        "--rate", type=_above_zero, default=10, metavar="R", help="messages a second; default: 10"
    )
    parser.add_argument(
        "--count", type=_positive, metavar="N", help="messages to write; default: no end"
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="the same seed gives the same chat; default: the time"
    )
    _add_setting(parser, "--brokers", "kafka.brokers", "host:port, separated by commas")
    _add_setting(parser, "--input-topics", "kafka.input_topics", "the first of them is used")
    _add_config(parser)


def _add_evaluate(commands: Any) -> None:
    parser = _command(commands, "evaluate", "measure a model on labelled texts", _evaluate)
    parser.add_argument(
        "model",
        metavar="MODEL",
        type=Path,
        help="a model folder, measured as it runs, or a checkpoint, in fp32 (extra `build`)",
    )
    parser.add_argument("file", metavar="F", type=Path, help="labelled texts")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    _add_labelled(parser)


def _add_finetune(commands: Any) -> None:
    parser = _command(
        commands,
        "finetune",
        "train a checkpoint on labelled texts (extra `build`)",
        _finetune,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--train", metavar="F", type=Path, required=True, help="texts to train on")
    parser.add_argument(
        "--dev",
        metavar="F",
        type=Path,
        required=True,
        help="texts that choose the best epoch and the thresholds",
    )
    parser.add_argument(
        "-o", dest="output", metavar="CHECKPOINT", type=Path, required=True, help="to write"
    )
    parser.add_argument("--base", default="minilm", help="minilm, a checkpoint folder, or a hub id")
    parser.add_argument(
        "--task",
        choices=["auto", "one-of", "several"],
        default="auto",
        help="auto: as the labels are",
    )
    parser.add_argument(
        "--emoji", action=argparse.BooleanOptionalAction, default=True, help="tokens for emoji"
    )
    parser.add_argument("--epochs", type=float, default=3, help="passes over the training texts")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="its peak")
    parser.add_argument("--batch-size", type=int, default=32, help="texts a step")
    parser.add_argument("--weight-decay", type=float, default=0.01, help="AdamW's")
    parser.add_argument(
        "--max-tokens", type=int, default=128, help="texts are cut here in training"
    )
    parser.add_argument(
        "--patience", type=int, default=6, help="evaluations, two an epoch, without a better one"
    )
    parser.add_argument(
        "--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto", help="of training"
    )
    parser.add_argument("--seed", type=int, default=1, help="of everything random")
    _add_labelled(parser)


def _add_prepare(commands: Any) -> None:
    parser = _command(
        commands,
        "prepare",
        "turn a checkpoint into an int8 model folder (extra `build`)",
        _prepare,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=Path, help="a DistilBERT sequence classifier"
    )
    parser.add_argument(
        "-o", dest="output", metavar="MODEL_DIR", type=Path, required=True, help="to write"
    )
    parser.add_argument("--name", help="of the model in outputs; by default the folder's")
    parser.add_argument(
        "--max-tokens", type=int, help="longer texts are cut; by default all the model has"
    )
    parser.add_argument(
        "--calibrate",
        metavar="F",
        type=Path,
        help="labelled texts (train) by which to fix scales of activations: faster",
    )
    parser.add_argument(
        "--eval", metavar="F", type=Path, help="labelled texts (dev) for the quality gate"
    )
    gate = parser.add_argument_group("quality gate: refuse where int8 strays further from fp32")
    gate.add_argument(
        "--max-f1-loss", type=float, default=0.3, metavar="POINTS", help="of macro F1"
    )
    gate.add_argument(
        "--min-agreement", type=float, default=0.99, metavar="SHARE", help="of single decisions"
    )
    gate.add_argument(
        "--max-logit-error", type=float, default=0.1, metavar="SHARE", help="without --eval"
    )
    _add_labelled(parser)


def _add_labelled(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("labelled texts: .jsonl, .csv or .tsv")
    group.add_argument("--text-field", default="text", metavar="FIELD", help="the field of texts")
    group.add_argument(
        "--label-field", default="labels", metavar="FIELD", help="the field of labels"
    )
    group.add_argument(
        "--label-names",
        metavar="FILE",
        type=Path,
        help="names, one a line: the files are header-less text, tab, numbers of labels",
    )
