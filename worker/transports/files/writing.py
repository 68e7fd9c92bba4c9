"""Output files that survive kill -9: they are appended to and synced, and then a checkpoint moves.

The checkpoint says for which run the files are, how far its inputs were read, and how far its
outputs were written. It is replaced as a whole, after the outputs are on disk. A kill may leave
bytes of a chunk behind that in an output. A run that continues cuts them off first, so that in the
end the outputs are byte for byte those of a run that was never disturbed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

from pydantic import ValidationError

from worker.durable import replaced
from worker.errors import ConfigurationError, WorkerError
from worker.strict import Strict
from worker.transports.files.reading import FilePosition

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_READ_BYTES: Final = 2**20
# Rights of files that are made here. Dead letters hold what people wrote: they are their owner's.
_OF_ANY_FILE: Final = 0o666
_OF_LETTERS: Final = 0o600
_EMPTY_SHA256: Final = hashlib.sha256().hexdigest()
_CONTINUES: Final = "run the same command again once there is room: it continues"


class RunIdentity(Strict):
    """All that decides the bytes of the outputs; `inputs` is a digest of their contents."""

    inputs: str
    model: str
    options: dict[str, str | int | bool | list[str] | None]


class ReplayPosition(Strict):
    """How far a run has read: inputs that are done, and the place in the next one."""

    input: int = 0
    offset: int = 0
    line: int = 0
    part: int = 0

    @property
    def in_file(self) -> FilePosition:
        """Return the place in the input that is being read."""
        return FilePosition(self.offset, self.line, self.part)


class Totals(Strict):
    """How many records a run has labelled and dead-lettered, also before it was interrupted.

    `truncated` are those labelled ones of which the model read the beginning.
    """

    labelled: int = 0
    dead_letters: int = 0
    truncated: int = 0


class EncodedOutcomes(NamedTuple):
    """The outcomes of a chunk, as lines without their ends, and how many texts were truncated."""

    labels: Sequence[bytes]
    letters: Sequence[bytes]
    truncated: int


class _Written(Strict):
    bytes: int = 0
    sha256: str = _EMPTY_SHA256


class _Checkpoint(Strict):
    version: Literal[1] = 1
    run: RunIdentity
    position: ReplayPosition = ReplayPosition()
    labels: _Written = _Written()
    letters: _Written = _Written()
    # Until the run has a dead letter, a file of that name belongs to someone else.
    letters_begun: bool = False
    totals: Totals = Totals()
    finished: bool = False


class Outputs(Protocol):
    """Where the outcomes of a replay go."""

    @property
    def position(self) -> ReplayPosition:
        """Return how far the run has read."""

    @property
    def totals(self) -> Totals:
        """Return how many records were labelled and dead-lettered so far."""

    @property
    def finished(self) -> bool:
        """Return whether the run is done."""

    def write(self, outcomes: EncodedOutcomes, position: ReplayPosition) -> None:
        """Append lines, and then move to a position.

        Raises:
            WorkerError: a file cannot be written; nothing has moved.

        """

    def finish(self) -> None:
        """Note that all inputs are done."""

    def close(self) -> None:
        """Close the files."""


class StreamedOutputs:
    """Labels to standard output or a file, dead letters to a file; cannot be continued."""

    def __init__(self, labels: Path | None, letters: Path, *, overwrite: bool) -> None:
        """Write labels to a path, None for standard output; dead letters are added to theirs.

        Raises:
            ConfigurationError: the file of labels holds something already.
            WorkerError: it cannot be written.

        """
        self.position = ReplayPosition()
        self.totals = Totals()
        self.finished = False
        self._labels_path = labels or Path("standard output")
        self._letters_path = letters
        self._letters: IO[bytes] | None = None
        self._labels = _standard_output() if labels is None else _open_new(labels, overwrite)

    def write(self, outcomes: EncodedOutcomes, position: ReplayPosition) -> None:
        """Append lines; dead letters go first, so that none is missing before a later label."""
        if outcomes.letters:
            if self._letters is None:
                self._letters = _open_append(self._letters_path, fcntl.LOCK_SH, _OF_LETTERS)
            with _explained_write_errors(self._letters_path):
                self._letters.write(_lines(outcomes.letters))
                self._letters.flush()
        with _explained_write_errors(self._labels_path):
            self._labels.write(_lines(outcomes.labels))
            self._labels.flush()
        self.position = position
        self.totals = _add(self.totals, outcomes)

    def finish(self) -> None:
        """Note that all inputs are done."""
        self.finished = True

    def close(self) -> None:
        """Close the files; standard output stays open."""
        for file in (self._letters, self._labels):
            if file is not None and file is not getattr(sys.stdout, "buffer", None):
                # That something could not be written has been reported already.
                with suppress(OSError):
                    file.close()


class CheckpointedOutputs:
    """Labels and dead letters in files that a killed run continues, byte for byte."""

    def __init__(self, labels: Path, letters: Path, run: RunIdentity, *, overwrite: bool) -> None:
        """Read how far the run has come, and cut off what the outputs hold beyond that.

        Raises:
            ConfigurationError: the files belong to another run, or to none.
            WorkerError: they cannot be written, or another run is writing them.

        """
        self._path = checkpoint_of(labels)
        self._letters_path = letters
        self._labels = _AppendFile(labels, _OF_ANY_FILE)
        self._letters = _AppendFile(letters, _OF_LETTERS)
        try:
            self._checkpoint = self._begin(labels, letters, run, overwrite=overwrite)
        except WorkerError:
            self.close()
            raise

    @property
    def position(self) -> ReplayPosition:
        """Return how far the run has read."""
        return self._checkpoint.position

    @property
    def totals(self) -> Totals:
        """Return how many records were labelled and dead-lettered so far."""
        return self._checkpoint.totals

    @property
    def finished(self) -> bool:
        """Return whether the run is done."""
        return self._checkpoint.finished

    def write(self, outcomes: EncodedOutcomes, position: ReplayPosition) -> None:
        """Append lines, sync them, and replace the checkpoint."""
        before = self._checkpoint
        try:
            self._append(outcomes, position)
        except WorkerError:
            with suppress(WorkerError):
                self._cut_back(before)
            raise

    def finish(self) -> None:
        """Note that all inputs are done."""
        self._advance(finished=True)

    def close(self) -> None:
        """Close the files, and let other runs have them."""
        self._labels.close()
        self._letters.close()

    def _begin(
        self, labels: Path, letters: Path, run: RunIdentity, *, overwrite: bool
    ) -> _Checkpoint:
        self._labels.open()
        checkpoint = None if overwrite else _read_checkpoint(self._path)
        if checkpoint is None:
            if not overwrite:
                _refuse_foreign(labels, letters)
            checkpoint = _Checkpoint(run=run, letters_begun=overwrite and letters.exists())
            _write_checkpoint(self._path, checkpoint)
        _compare(self._path, checkpoint.run, run)
        if checkpoint.letters_begun:
            self._letters.open()
        if checkpoint.finished:
            self._labels.check(checkpoint.labels)
            self._letters.check(checkpoint.letters)
        else:
            self._cut_back(checkpoint)
        return checkpoint

    def _cut_back(self, checkpoint: _Checkpoint) -> None:
        self._labels.cut(checkpoint.labels)
        self._letters.cut(checkpoint.letters)

    def _append(self, outcomes: EncodedOutcomes, position: ReplayPosition) -> None:
        self._labels.append(_lines(outcomes.labels))
        if outcomes.letters:
            if not self._checkpoint.letters_begun:
                _refuse_foreign(self._letters_path)
                self._advance(letters_begun=True)
            self._letters.open()
            self._letters.append(_lines(outcomes.letters))
        self._advance(
            position=position,
            labels=self._labels.written,
            letters=self._letters.written,
            totals=_add(self.totals, outcomes),
        )

    def _advance(self, **changes: object) -> None:
        checkpoint = self._checkpoint.model_copy(update=changes)
        _write_checkpoint(self._path, checkpoint)
        self._checkpoint = checkpoint


class _AppendFile:
    """A file that is appended to, and the digest of what it holds."""

    def __init__(self, path: Path, rights: int) -> None:
        self._path = path
        self._rights = rights
        self._file: IO[bytes] | None = None
        self._digest = hashlib.sha256()
        self._bytes = 0

    @property
    def written(self) -> _Written:
        return _Written(bytes=self._bytes, sha256=self._digest.hexdigest())

    def open(self) -> None:
        """Open the file, or create it, and lock other runs out."""
        if self._file is None:
            self._file = _open_append(self._path, fcntl.LOCK_EX, self._rights)

    def check(self, written: _Written) -> None:
        """Check that the file, if it was opened, still starts with what was written."""
        if self._file is None:
            return
        self._digest, self._bytes = hashlib.sha256(), 0
        with _explained_write_errors(self._path), self._path.open("rb") as file:
            while block := file.read(min(_READ_BYTES, written.bytes - self._bytes)):
                self._digest.update(block)
                self._bytes += len(block)
        if self.written != written:
            raise ConfigurationError(
                f"{self._path} is not what the checkpoint of its run says it is",
                "restore it, or start anew with --overwrite",
            )

    def cut(self, written: _Written) -> None:
        """Cut off what stands behind the bytes that were written, after a check of these."""
        self.check(written)
        if self._file is not None:
            with _explained_write_errors(self._path):
                os.ftruncate(self._file.fileno(), written.bytes)

    def append(self, data: bytes) -> None:
        """Append bytes, and sync the file."""
        if self._file is None or not data:
            return
        with _explained_write_errors(self._path, _CONTINUES):
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
        self._digest.update(data)
        self._bytes += len(data)

    def close(self) -> None:
        if self._file is not None:
            # That something could not be written has been reported already.
            with suppress(OSError):
                self._file.close()
            self._file = None


@contextmanager
def _explained_write_errors(
    path: Path, advice: str = "check the path, its rights and the room"
) -> Iterator[None]:
    """Turn the error of a file that cannot be written into a sentence.

    Raises:
        WorkerError: in place of any error of the system but one: where the reader of standard
            output has seen enough, the pipe is broken, and the command ends in silence.

    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise WorkerError(f"cannot write {path}: {error.strerror}", advice) from None


def _read_checkpoint(path: Path) -> _Checkpoint | None:
    try:
        return _Checkpoint.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        raise ConfigurationError(
            f"{path} is not a checkpoint that this worker can read",
            "restore it, or start anew with --overwrite",
        ) from None


def _write_checkpoint(path: Path, checkpoint: _Checkpoint) -> None:
    content = checkpoint.model_dump_json(indent=1) + "\n"
    with _explained_write_errors(path, _CONTINUES), replaced(path, draft_of(path)) as file:
        file.write(content.encode())


def draft_of(checkpoint: Path) -> Path:
    """Return the path at which a checkpoint is written before it is renamed."""
    return checkpoint.with_name(checkpoint.name + ".new")


def _compare(path: Path, before: RunIdentity, now: RunIdentity) -> None:
    if before == now:
        return
    if before.inputs != now.inputs:
        problem = "its inputs are different files, or have changed"
    elif before.model != now.model:
        problem = "its model or thresholds are different"
    else:
        names = [name for name in now.options if before.options.get(name) != now.options[name]]
        problem = f"it has different options ({', '.join(names)})"
    raise ConfigurationError(
        f"{path} belongs to another run: {problem}",
        "run the same command on the same files, name another -o, or start anew with --overwrite",
    )


def _refuse_foreign(*paths: Path) -> None:
    for path in paths:
        if path.exists() and path.stat().st_size:
            raise ConfigurationError(
                f"{path} exists, and does not belong to a run that can be continued",
                "name another file, or start anew with --overwrite",
            )


def _open_append(path: Path, lock: int, rights: int = _OF_ANY_FILE) -> IO[bytes]:
    """Open a file to append to; LOCK_EX locks it for one run, LOCK_SH for all that append."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags, rights)

    with _explained_write_errors(path):
        file = open(path, "ab", opener=opener)  # noqa: SIM115 - returned
    try:
        fcntl.flock(file, lock | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise WorkerError(
            f"another run is writing {path}", "wait for it, or name another file"
        ) from None
    return file


def _open_new(path: Path, overwrite: bool) -> IO[bytes]:  # noqa: FBT001 - private, named by its one caller
    """Open and empty a file for a run without checkpoint, and remove that of an earlier run."""
    if not overwrite:
        _refuse_foreign(path)
    file = _open_append(path, fcntl.LOCK_EX)
    if path.is_file():
        with _explained_write_errors(path):
            file.truncate(0)
            checkpoint_of(path).unlink(missing_ok=True)
    return file


def _standard_output() -> IO[bytes]:
    if sys.stdout is None:
        raise WorkerError("standard output is closed", "name a file with -o")
    return sys.stdout.buffer


def checkpoint_of(labels: Path) -> Path:
    """Return the path of the checkpoint of an output."""
    return labels.with_name(labels.name + ".checkpoint")


def _lines(lines: Sequence[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _add(totals: Totals, outcomes: EncodedOutcomes) -> Totals:
    return Totals(
        labelled=totals.labelled + len(outcomes.labels),
        dead_letters=totals.dead_letters + len(outcomes.letters),
        truncated=totals.truncated + outcomes.truncated,
    )
