"""`worker replay`: files or a pipe through the same pipeline as a stream."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from worker import pipeline
from worker.artifact import BUILT_IN_MODEL, load_artifact
from worker.codec import LabelEncoder
from worker.errors import ConfigurationError, WorkerError
from worker.runtime import fields_of, open_classifier
from worker.signals import StopSignal
from worker.telemetry.progress import Progress, tell
from worker.transports.files import FileChunk, FileTransport, Source
from worker.transports.formats import (
    STANDARD_INPUT,
    FilePosition,
    Format,
    InputFile,
    format_of,
)
from worker.transports.outputs import (
    CheckpointedOutputs,
    Outputs,
    RunIdentity,
    StreamedOutputs,
    checkpoint_of,
    replacement_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.artifact import Artifact
    from worker.classifier import Classifier
    from worker.codec import Fields
    from worker.messages import Outcome
    from worker.settings import Settings

DONE: Final = 0
DONE_WITH_DEAD_LETTERS: Final = 3
_DEAD_LETTERS_WITHOUT_OUTPUT: Final = Path("dead-letters.jsonl")


@dataclass(frozen=True, slots=True)
class ReplayFiles:
    """What to read and where to write; `output` None is standard output."""

    inputs: Sequence[str]
    output: Path | None = None
    dead_letters: Path | None = None
    form: Format | None = None
    overwrite: bool = False


def replay(files: ReplayFiles, settings: Settings) -> int:
    """Label all messages of the inputs; returns the exit code.

    Raises:
        ConfigurationError: files or settings that do not fit each other, or the run to continue.
        WorkerError: a file that cannot be read or written, or a model that cannot be used.

    """
    sources = _sources(files)
    fields = fields_of(settings.input)
    artifact = load_artifact(settings.model or BUILT_IN_MODEL, settings.thresholds)
    _try_inputs(sources, fields, settings.input.max_bytes)
    outputs = _outputs(files, sources, settings, artifact)
    try:
        if outputs.finished:
            tell(f"this run is finished: {_totals(outputs)}; start it anew with --overwrite")
            return DONE
        if outputs.totals.labelled or outputs.totals.dead_letters:
            tell(f"continuing after {_totals(outputs)}")
        name, digest = artifact.manifest.name, artifact.digest
        encoder = LabelEncoder(name, digest, include_text=settings.include_text)
        transport = FileTransport(sources, fields, settings.input.max_bytes, outputs, encoder)
        return _run(files, transport, outputs, open_classifier(settings, artifact))
    finally:
        outputs.close()


def _run(
    files: ReplayFiles, transport: FileTransport, outputs: Outputs, classifier: Classifier
) -> int:
    watch = _Watch(files.inputs, outputs, classifier)
    with StopSignal() as stop:
        try:
            ended = pipeline.run(
                transport,
                classifier,
                completed=watch.completed,
                stopping=lambda: stop.received is not None,
            )
            if ended:
                outputs.finish()
        finally:
            watch.close()
            classifier.close()
    if not ended:
        tell(f"interrupted after {_totals(outputs)}; {_how_to_continue(outputs)}")
        return stop.exit_code
    tell(f"done: {_totals(outputs)}, {watch.summary()}")
    if outputs.totals.dead_letters:
        tell(f"dead letters, with the reason for each: {_dead_letters(files)}")
        return DONE_WITH_DEAD_LETTERS
    return DONE


class _Watch:
    """Follows a replay and tells how it is coming along."""

    def __init__(self, inputs: Sequence[str], outputs: Outputs, classifier: Classifier) -> None:
        self._sizes = [_size(path) for path in inputs]
        self._classifier = classifier
        done = self._before(outputs.position.input)
        known = STANDARD_INPUT not in inputs
        self._progress = Progress(sum(self._sizes) if known else None, done)

    def completed(self, chunk: FileChunk, outcomes: Sequence[Outcome]) -> None:
        index = chunk.position.input
        done = self._before(index)
        if index < len(self._sizes) and chunk.position.offset:
            done += chunk.bytes_read
        self._progress.update(len(outcomes), done, self._classifier.counts.hit_rate)

    def close(self) -> None:
        self._progress.close()

    def summary(self) -> str:
        hits = self._classifier.counts.hit_rate
        return f"{hits:.1%} answered from memory or cache, {self._progress.rate:,.0f} messages/s"

    def _before(self, index: int) -> int:
        return sum(self._sizes[:index])


def _sources(files: ReplayFiles) -> list[Source]:
    _check_paths(files)
    names = [Path(path).name for path in files.inputs]
    if len(set(names)) < len(names):
        names = list(files.inputs)
    return [
        Source(
            path,
            "stdin" if path == STANDARD_INPUT else _readable(name),
            files.form or format_of(path),
        )
        for path, name in zip(files.inputs, names, strict=True)
    ]


def _check_paths(files: ReplayFiles) -> None:
    """Check that all inputs are there, and that no file has two parts to play.

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
        written += [files.output, checkpoint, replacement_of(checkpoint)]
    for path in [*inputs, *map(str, written)]:
        identity = _identity_of(path, must_exist=path in inputs)
        if identity in parts:
            raise ConfigurationError(
                f"{path} would be read or written twice (also as {parts[identity]})",
                "name each input once, and outputs of their own",
            )
        parts[identity] = path


def _identity_of(path: str, *, must_exist: bool) -> object:
    """Return what tells a file from others, also under another name; a device is never one."""
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
    """Return a file's name as text, whatever bytes it has."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _outputs(
    files: ReplayFiles, sources: Sequence[Source], settings: Settings, artifact: Artifact
) -> Outputs:
    output, letters = files.output, _dead_letters(files)
    if output is None:
        return StreamedOutputs(output, letters, overwrite=files.overwrite)
    paths = [output, letters, *(Path(path) for path in files.inputs if path != STANDARD_INPUT)]
    if STANDARD_INPUT in files.inputs or not all(map(_is_plain, paths)):
        tell("with a pipe or a device this run cannot be continued if it is cut short")
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
            "include_text": settings.include_text,
            "dead_letters": _readable(letters.name),
        },
    )
    return CheckpointedOutputs(output, letters, run, overwrite=files.overwrite)


def _try_inputs(sources: Sequence[Source], fields: Fields, max_bytes: int) -> None:
    """Open each file once, so that a header without texts is told before any work."""
    for source in sources:
        if source.path != STANDARD_INPUT and _is_plain(Path(source.path)):
            InputFile(source.path, source.form, fields, max_bytes, FilePosition()).close()


def _digest(sources: Sequence[Source]) -> str:
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
    return f"{labelled:,} labelled, {letters:,} dead letter{'' if letters == 1 else 's'}"


def _how_to_continue(outputs: Outputs) -> str:
    if isinstance(outputs, CheckpointedOutputs):
        return "run the same command again: it continues"
    return "without -o and files as inputs it cannot be continued"
