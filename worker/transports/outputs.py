"""Output files that survive kill -9: appended, synced, then vouched for by a checkpoint.

The checkpoint says how far inputs were read and outputs written, and for which run. It is
replaced as a whole, after the outputs are on disk. What an output holds beyond it, from a chunk
that a kill cut short, is cut off before going on; so the end is byte-identical to that of an
undisturbed run.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Literal, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from worker.errors import ConfigurationError, WorkerError
from worker.transports.formats import FilePosition

if TYPE_CHECKING:
    from collections.abc import Sequence

_READ_BYTES: Final = 2**20
_EMPTY_SHA256: Final = hashlib.sha256().hexdigest()


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputIdentity(_Strict):
    """An input as it was when the run started."""

    name: str
    form: str
    bytes: int
    sha256: str


class RunIdentity(_Strict):
    """All that decides the bytes of the outputs."""

    inputs: tuple[InputIdentity, ...]
    model: str
    options: dict[str, str | int | bool | list[str] | None]


class ReplayPosition(_Strict):
    """How far a run has read: inputs that are done, and the place in the next one."""

    input: int = 0
    offset: int = 0
    line: int = 0
    part: int = 0

    @property
    def in_file(self) -> FilePosition:
        """Return the place in the input that is being read."""
        return FilePosition(self.offset, self.line, self.part)


class Totals(_Strict):
    """What became of the records so far, over all sittings of a run."""

    labelled: int = 0
    dead_letters: int = 0


class _Written(_Strict):
    bytes: int = 0
    sha256: str = _EMPTY_SHA256


class _Checkpoint(_Strict):
    version: Literal[1] = 1
    run: RunIdentity
    position: ReplayPosition = ReplayPosition()
    labels: _Written = _Written()
    letters: _Written = _Written()
    totals: Totals = Totals()
    finished: bool = False


class Outputs(Protocol):
    """Where the outcomes of a replay go."""

    @property
    def position(self) -> ReplayPosition:
        """Return how far the run has read."""

    @property
    def totals(self) -> Totals:
        """Return what became of the records so far."""

    @property
    def finished(self) -> bool:
        """Tell whether the run is done."""

    def write(
        self, labels: Sequence[bytes], letters: Sequence[bytes], position: ReplayPosition
    ) -> None:
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
        self._labels = sys.stdout.buffer if labels is None else _open_new(labels, overwrite)

    def write(
        self, labels: Sequence[bytes], letters: Sequence[bytes], position: ReplayPosition
    ) -> None:
        """Append lines; the dead letters first, so that none is missing where labels go on."""
        if letters:
            if self._letters is None:
                self._letters = _open_append(self._letters_path)
            with _Told(self._letters_path):
                self._letters.write(_lines(letters))
                self._letters.flush()
        with _Told(self._labels_path):
            self._labels.write(_lines(labels))
            self._labels.flush()
        self.position = position
        self.totals = _add(self.totals, labels, letters)

    def finish(self) -> None:
        """Note that all inputs are done."""
        self.finished = True

    def close(self) -> None:
        """Close the files; standard output stays open."""
        for file in (self._letters, self._labels):
            if file is not None and file is not sys.stdout.buffer:
                file.close()


class CheckpointedOutputs:
    """Labels and dead letters in files that a killed run continues, byte for byte."""

    def __init__(self, labels: Path, letters: Path, run: RunIdentity, *, overwrite: bool) -> None:
        """Find out how far the run has come, and cut off what no checkpoint vouches for.

        Raises:
            ConfigurationError: the files belong to another run, or to none.
            WorkerError: they cannot be written, or another run is writing them.

        """
        self._path = labels.with_name(labels.name + ".checkpoint")
        self._labels = _AppendFile(labels)
        self._letters = _AppendFile(letters)
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
        """Return what became of the records so far."""
        return self._checkpoint.totals

    @property
    def finished(self) -> bool:
        """Tell whether the run is done."""
        return self._checkpoint.finished

    def write(
        self, labels: Sequence[bytes], letters: Sequence[bytes], position: ReplayPosition
    ) -> None:
        """Append lines, sync them, and replace the checkpoint."""
        before = self._checkpoint
        try:
            self._append(labels, letters, position)
        except WorkerError:
            for file, written in ((self._labels, before.labels), (self._letters, before.letters)):
                with suppress(WorkerError):
                    file.cut(written)
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
            checkpoint = _Checkpoint(run=run)
            _write_checkpoint(self._path, checkpoint)
        _compare(self._path, checkpoint.run, run)
        self._labels.cut(checkpoint.labels)
        if letters.exists() or checkpoint.letters.bytes:
            self._letters.open()
            self._letters.cut(checkpoint.letters)
        return checkpoint

    def _append(
        self, labels: Sequence[bytes], letters: Sequence[bytes], position: ReplayPosition
    ) -> None:
        self._labels.append(_lines(labels))
        if letters:
            self._letters.open()
            self._letters.append(_lines(letters))
        self._advance(
            position=position,
            labels=self._labels.written,
            letters=self._letters.written,
            totals=_add(self.totals, labels, letters),
        )

    def _advance(self, **changes: object) -> None:
        checkpoint = self._checkpoint.model_copy(update=changes)
        _write_checkpoint(self._path, checkpoint)
        self._checkpoint = checkpoint


class _AppendFile:
    """A file that is appended to, and the digest of what it holds."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._digest = hashlib.sha256()
        self._bytes = 0

    @property
    def written(self) -> _Written:
        return _Written(bytes=self._bytes, sha256=self._digest.hexdigest())

    def open(self) -> None:
        """Open the file, make it where there is none, and lock other runs out."""
        if self._file is not None:
            return
        file = _open_append(self._path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise WorkerError(
                f"another run is writing {self._path}", "wait for it, or name another file"
            ) from None
        self._file = file

    def cut(self, written: _Written) -> None:
        """Cut the file to what was written, and check that it is still that."""
        if self._file is None:
            return
        self._digest, self._bytes = hashlib.sha256(), 0
        with _Told(self._path), self._path.open("rb") as file:
            while block := file.read(min(_READ_BYTES, written.bytes - self._bytes)):
                self._digest.update(block)
                self._bytes += len(block)
        if self.written != written:
            raise ConfigurationError(
                f"{self._path} is not what the checkpoint of its run says it is",
                "restore it, or start anew with --overwrite",
            )
        with _Told(self._path):
            os.ftruncate(self._file.fileno(), written.bytes)

    def append(self, data: bytes) -> None:
        """Append and sync."""
        if self._file is None or not data:
            return
        with _Told(self._path, "run the same command again once there is room: it continues"):
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
        self._digest.update(data)
        self._bytes += len(data)

    def close(self) -> None:
        if self._file is not None:
            # What could not be written was said already.
            with suppress(OSError):
                self._file.close()
            self._file = None


class _Told:
    """Turns the errors of a file that is being written into a sentence."""

    def __init__(self, path: Path, advice: str = "check the path, its rights and the room") -> None:
        self._path = path
        self._advice = advice

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        # A reader of standard output that has seen enough is no error to tell of.
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise WorkerError(
                f"cannot write {self._path}: {error.strerror}", self._advice
            ) from None


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
    new = path.with_name(path.name + ".new")
    with _Told(path, "run the same command again once there is room: it continues"):
        with new.open("w", encoding="utf-8") as file:
            file.write(checkpoint.model_dump_json(indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _compare(path: Path, before: RunIdentity, now: RunIdentity) -> None:
    if before == now:
        return
    if before.inputs != now.inputs:
        problem = "the inputs are others, or have changed"
    elif before.model != now.model:
        problem = "the model or its thresholds are others"
    else:
        names = [name for name in now.options if before.options.get(name) != now.options[name]]
        problem = f"options are others ({', '.join(names)})"
    raise ConfigurationError(
        f"{path} is of another run: {problem}",
        "run the same command on the same files, name another -o, or start anew with --overwrite",
    )


def _refuse_foreign(*paths: Path) -> None:
    for path in paths:
        if path.exists() and path.stat().st_size:
            raise ConfigurationError(
                f"{path} exists, and is not of a run that can be continued",
                "name another file, or start anew with --overwrite",
            )


def _open_append(path: Path) -> IO[bytes]:
    with _Told(path):
        return path.open("ab")


def _open_new(path: Path, overwrite: bool) -> IO[bytes]:  # noqa: FBT001 - private, named by its one caller
    if not overwrite:
        _refuse_foreign(path)
    with _Told(path):
        return path.open("wb")


def _lines(lines: Sequence[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _add(totals: Totals, labels: Sequence[bytes], letters: Sequence[bytes]) -> Totals:
    return Totals(
        labelled=totals.labelled + len(labels), dead_letters=totals.dead_letters + len(letters)
    )
