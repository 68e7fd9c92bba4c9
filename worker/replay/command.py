"""`worker replay`: labels files or a pipe, by the same pipeline as a stream."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from worker import pipeline
from worker.assembly import collect_garbage_rarely, fields_of, load_model, open_classifier
from worker.errors import ConfigurationError, ExitCode, WorkerError
from worker.events.encoding import LabelEncoder
from worker.logs.stacks import redacted_errors
from worker.replay.children import Children, ParentOutputs
from worker.terminal.progress import Progress
from worker.terminal.sentences import say
from worker.terminal.signals import StopSignal
from worker.transports.files.reading import (
    STANDARD_INPUT,
    FilePosition,
    Format,
    InputFile,
    format_of,
)
from worker.transports.files.transport import FileChunk, FileTransport, InputSource, Shard
from worker.transports.files.writing import (
    CheckpointedOutputs,
    Outputs,
    ReplayPosition,
    RunIdentity,
    StreamedOutputs,
    checkpoint_of,
    draft_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worker.events.decoding import Fields
    from worker.events.records import Outcome
    from worker.inference.artifact import Artifact
    from worker.inference.classifier import Classifier
    from worker.settings.schema import Settings

_DEAD_LETTERS_WITHOUT_OUTPUT: Final = Path("dead-letters.jsonl")


@dataclass(frozen=True, slots=True)
class ReplayFiles:
    """What to read and where to write.

    Without `output`, labels go to standard output. Without `dead_letters`, dead letters go to a file
    next to the output, or to dead-letters.jsonl where there is none. Without `form`, the format of
    each input follows from its name.
    """

    inputs: Sequence[str]
    output: Path | None = None
    dead_letters: Path | None = None
    form: Format | None = None
    overwrite: bool = False


def replay(
    files: ReplayFiles,
    settings: Settings,
    arguments: Sequence[str] = (),
    child: str | None = None,
) -> int:
    """Label all messages of the inputs; returns the exit code.

    `arguments` are those of this command line, with which it starts children; `child` is the value
    of `--child`, which it gives to each of them.

    Raises:
        ConfigurationError: files or settings do not fit each other, or the run to continue.
        WorkerError: a file cannot be read or written, the model cannot be used, or a child failed.

    """
    sources = _sources(files)
    fields = fields_of(settings.input)
    artifact = load_model(settings)
    if child:
        return _label_shard(ParentOutputs(child), sources, settings, artifact)
    _try_inputs(sources, fields, settings.input.max_bytes)
    outputs = _outputs(files, sources, settings, artifact)
    try:
        if outputs.finished:
            say(f"this run is finished: {_totals(outputs)}; start it anew with --overwrite")
            return _exit_code(outputs)
        if outputs.totals.labelled or outputs.totals.dead_letters:
            say(f"continuing after {_totals(outputs)}")
        processes = _processes(files, settings)
        work = (
            partial(_label_with_children, processes, arguments, outputs)
            if processes > 1
            else partial(
                _label,
                _transport(sources, settings, artifact, outputs),
                open_classifier(settings, artifact),
            )
        )
        return _run(files, outputs, work)
    finally:
        outputs.close()


def _processes(files: ReplayFiles, settings: Settings) -> int:
    """Return how many processes label: only one can read from a pipe or a device."""
    if settings.run.processes > 1 and not all(
        path != STANDARD_INPUT and _is_plain(Path(path)) for path in files.inputs
    ):
        say("a pipe or a device is read by one process")
        return 1
    return settings.run.processes


def _transport(
    sources: Sequence[InputSource], settings: Settings, artifact: Artifact, outputs: Outputs
) -> FileTransport:
    encoder = LabelEncoder(
        artifact.manifest.name, artifact.digest, include_text=settings.include_text
    )
    fields, max_bytes = fields_of(settings.input), settings.input.max_bytes
    return FileTransport(sources, fields, max_bytes, outputs, encoder)


def _label_shard(
    outputs: ParentOutputs, sources: Sequence[InputSource], settings: Settings, artifact: Artifact
) -> int:
    """Label the chunks of this child, and send them to the parent; returns the exit code."""
    transport = _transport(sources, settings, artifact, outputs)
    transport.shard = Shard(outputs.child_number, settings.run.processes)
    classifier = open_classifier(settings, artifact)
    collect_garbage_rarely()

    def completed(chunk: FileChunk, outcomes: Sequence[Outcome]) -> None:  # noqa: ARG001 - the pipeline's form
        outputs.send(chunk.bytes_read, classifier.counts)

    try:
        pipeline.run(transport, classifier, completed=completed, stopping=lambda: False)
    finally:
        outputs.close()
        classifier.close()
    return ExitCode.DONE


def _label(
    transport: FileTransport, classifier: Classifier, progress: _InputProgress, stop: StopSignal
) -> bool:
    """Label all chunks in this process; returns whether the inputs came to their end."""
    collect_garbage_rarely()

    def completed(chunk: FileChunk, outcomes: Sequence[Outcome]) -> None:
        hit_rate = classifier.counts.hit_rate
        progress.completed(len(outcomes), chunk.position, chunk.bytes_read, hit_rate)

    try:
        return pipeline.run(
            transport, classifier, completed=completed, stopping=lambda: stop.received is not None
        )
    finally:
        classifier.close()


def _label_with_children(
    processes: int,
    arguments: Sequence[str],
    outputs: Outputs,
    progress: _InputProgress,
    stop: StopSignal,
) -> bool:
    """Let children label, and write it in order; returns whether the inputs came to their end."""
    with Children(processes, arguments, outputs.position) as children:
        for chunk in children.chunks():
            if chunk is not None:
                outputs.write(chunk.outcomes, chunk.position)
                number = len(chunk.outcomes.labels) + len(chunk.outcomes.letters)
                progress.completed(number, chunk.position, chunk.bytes_read, children.hit_rate)
            if stop.received is not None:
                return False
    return True


def _run(
    files: ReplayFiles, outputs: Outputs, work: Callable[[_InputProgress, StopSignal], bool]
) -> int:
    progress = _InputProgress(files.inputs, outputs)
    with StopSignal() as stop, redacted_errors():
        try:
            ended = work(progress, stop)
            if ended:
                outputs.finish()
        finally:
            progress.close()
    if not ended:
        say(f"interrupted after {_totals(outputs)}; {_how_to_continue(outputs)}")
        return stop.exit_code
    say(f"done: {_totals(outputs)}, {progress.summary()}")
    if outputs.totals.dead_letters:
        say(f"dead letters, with the reason for each: {_dead_letters(files)}")
    return _exit_code(outputs)


def _exit_code(outputs: Outputs) -> ExitCode:
    """Return how a run has ended that is done."""
    return ExitCode.DONE_WITH_DEAD_LETTERS if outputs.totals.dead_letters else ExitCode.DONE


class _InputProgress:
    """Shows how far into its inputs a replay is."""

    def __init__(self, inputs: Sequence[str], outputs: Outputs) -> None:
        self._sizes = [_size(path) for path in inputs]
        self._hit_rate = 0.0
        done = self._before(outputs.position.input)
        known = STANDARD_INPUT not in inputs
        self._progress = Progress(sum(self._sizes) if known else None, done)

    def completed(
        self, messages: int, position: ReplayPosition, bytes_read: int, hit_rate: float
    ) -> None:
        done = self._before(position.input)
        if position.input < len(self._sizes) and position.offset:
            done += bytes_read
        self._hit_rate = hit_rate
        self._progress.update(messages, done, hit_rate)

    def close(self) -> None:
        self._progress.close()

    def summary(self) -> str:
        return (
            f"{self._hit_rate:.1%} answered from memory or cache, "
            f"{self._progress.rate:,.0f} messages/s"
        )

    def _before(self, index: int) -> int:
        return sum(self._sizes[:index])


def _sources(files: ReplayFiles) -> list[InputSource]:
    _check_paths(files)
    names = [Path(path).name for path in files.inputs]
    if len(set(names)) < len(names):
        names = list(files.inputs)
    return [
        InputSource(
            path,
            "stdin" if path == STANDARD_INPUT else _readable(name),
            files.form or format_of(path),
        )
        for path, name in zip(files.inputs, names, strict=True)
    ]


def _check_paths(files: ReplayFiles) -> None:
    """Check that all inputs are there, and that no file is read and written, or written twice.

    Raises:
        ConfigurationError: an input is missing or a folder, or two of the files are the same.

    """
    if files.output is not None and not files.output.name:
        raise ConfigurationError(f"the output {files.output} is a folder", "name a file")
    parts: dict[object, str] = {}
    inputs = [path for path in files.inputs if path != STANDARD_INPUT]
    written = [_dead_letters(files)]
    if files.output is not None:
        checkpoint = checkpoint_of(files.output)
        written += [files.output, checkpoint, draft_of(checkpoint)]
    for path in [*inputs, *map(str, written)]:
        identity = _identity_of(path, must_exist=path in inputs)
        if identity in parts:
            raise ConfigurationError(
                f"{path} would be read or written twice (also as {parts[identity]})",
                "name each input once, and outputs of their own",
            )
        parts[identity] = path


def _identity_of(path: str, *, must_exist: bool) -> object:
    """Return what two names of one file have in common; a device differs even from itself."""
    try:
        status = os.stat(path)  # noqa: PTH116 - the path is as the user gave it
    except FileNotFoundError:
        if must_exist:
            raise ConfigurationError(f"there is no file {path}", "check the path") from None
        return os.path.realpath(path)
    except (OSError, ValueError):
        raise ConfigurationError(f"cannot use the path {path}", "check it and its rights") from None
    if stat.S_ISDIR(status.st_mode):
        raise ConfigurationError(f"{path} is a folder", "name files")
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else object()


def _readable(name: str) -> str:
    """Return a file's name as text; each byte that is not UTF-8 becomes an escape."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _outputs(
    files: ReplayFiles, sources: Sequence[InputSource], settings: Settings, artifact: Artifact
) -> Outputs:
    output, letters = files.output, _dead_letters(files)
    if output is None:
        return StreamedOutputs(output, letters, overwrite=files.overwrite)
    paths = [output, letters, *(Path(path) for path in files.inputs if path != STANDARD_INPUT)]
    if STANDARD_INPUT in files.inputs or not all(map(_is_plain, paths)):
        say("with a pipe or a device this run cannot be continued if it is cut short")
        return StreamedOutputs(output, letters, overwrite=files.overwrite)
    run = RunIdentity(
        inputs=_digest(sources),
        model=artifact.digest,
        options={
            "text_field": settings.input.text_field,
            "id_field": settings.input.id_field,
            "keep": list(settings.input.keep),
            "skip_field": settings.input.skip_field,
            "max_bytes": settings.input.max_bytes,
            "max_id_length": settings.input.max_id_length,
            "include_text": settings.include_text,
            "dead_letters": _readable(letters.name),
        },
    )
    return CheckpointedOutputs(output, letters, run, overwrite=files.overwrite)


def _try_inputs(sources: Sequence[InputSource], fields: Fields, max_bytes: int) -> None:
    """Open each file once, so that a header without a column of texts is an error before any work.

    Raises:
        ConfigurationError: a header has no column of texts.
        WorkerError: a file cannot be read.

    """
    for source in sources:
        if source.path != STANDARD_INPUT and _is_plain(Path(source.path)):
            InputFile(source.path, source.form, fields, max_bytes, FilePosition()).close()


def _digest(sources: Sequence[InputSource]) -> str:
    """Return a digest of all inputs: names, formats and contents."""
    digest = hashlib.sha256()
    for source in sources:
        try:
            with open(source.path, "rb") as file:  # noqa: PTH123 - the path is as the user gave it
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise WorkerError(
                f"cannot read {source.path}: {error.strerror}", "check the path"
            ) from None
        digest.update(f"{source.name}\0{source.form}\0{content}\0".encode())
    return digest.hexdigest()


def _dead_letters(files: ReplayFiles) -> Path:
    if files.dead_letters:
        return files.dead_letters
    if files.output is None:
        return _DEAD_LETTERS_WITHOUT_OUTPUT
    return files.output.with_name(files.output.name + ".dead.jsonl")


def _is_plain(path: Path) -> bool:
    return path.is_file() or not path.exists()


def _size(path: str) -> int:
    return 0 if path == STANDARD_INPUT else Path(path).stat().st_size


def _totals(outputs: Outputs) -> str:
    labelled, letters = outputs.totals.labelled, outputs.totals.dead_letters
    cut = f" ({outputs.totals.truncated:,} of them truncated)" if outputs.totals.truncated else ""
    return f"{labelled:,} labelled{cut}, {letters:,} dead letter{'' if letters == 1 else 's'}"


def _how_to_continue(outputs: Outputs) -> str:
    if isinstance(outputs, CheckpointedOutputs):
        return "run the same command again: it continues"
    return "without -o and files as inputs it cannot be continued"
