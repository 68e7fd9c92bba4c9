"""`worker dead-letters redrive FILE`: writes the lines that `worker replay` could not label.

The lines go into a file as they were, for another `worker replay`. The file appears whole or not at
all, and one that exists is replaced only on request.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from worker.dead_letters.letters import letters_of_files
from worker.durable import replaced
from worker.errors import ConfigurationError, WorkerError
from worker.events.records import FilePlace
from worker.terminal.confirmations import confirmed
from worker.terminal.sentences import counted, show

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from worker.dead_letters.letters import Filters, Letter


def rewrite(
    files: Sequence[Path], output: Path, filters: Filters, *, again: bool, yes: bool
) -> None:
    """Say how many lines would be written, and write them once that is confirmed.

    Raises:
        ConfigurationError: the output exists, or a filter does not fit files.
        WorkerError: a file cannot be read or written, or lacks a piece of a line.

    """
    if output.exists() and (not again or any(_same(output, file) for file in files)):
        raise ConfigurationError(
            f"{output} exists", "name another file, or write it anew with --again"
        )
    lines = sum(_piece(letter) <= 1 for letter in _chosen(files, filters))
    if not lines:
        show("there is nothing to send back")
        return
    show(f"{counted(lines, 'line')} to write to {output}")
    if confirmed(f"write {counted(lines, 'line')}?", yes=yes):
        _write(files, filters, output)
        show(f"{counted(lines, 'line')} written; next: worker replay {output}")


def _chosen(files: Sequence[Path], filters: Filters) -> Iterator[Letter]:
    """Yield the letters that the filters take; the pieces of a line follow each other.

    Raises:
        WorkerError: a piece of a line is missing.

    """
    before: tuple[str, int, int] | None = None
    for letter in letters_of_files(files, filters):
        if filters.take(letter):
            piece = _piece(letter)
            if piece > 1 and before != (letter.source, letter.offset, piece - 1):
                raise WorkerError(
                    f"piece {piece - 1} of line {letter.offset} of {letter.source} is missing",
                    "name the files whole and in their order",
                )
            before = (letter.source, letter.offset, piece)
            yield letter


def _piece(letter: Letter) -> int:
    """Return which piece of a long line a letter holds, counted from 1; 0 for a whole line."""
    return letter.place.part if isinstance(letter.place, FilePlace) else 0


def _same(one: Path, other: Path) -> bool:
    return other.exists() and one.samefile(other)


def _write(files: Sequence[Path], filters: Filters, output: Path) -> None:
    """Write the lines; the output is replaced once all of them are on disk.

    Raises:
        WorkerError: the output cannot be written, or a piece of a line is missing.

    """
    # Another redrive to the same output at the same time has a draft of its own.
    draft = output.with_name(f".{output.name}.{secrets.token_hex(4)}")
    try:
        with replaced(output, draft) as file:
            end = b""
            for letter in _chosen(files, filters):
                file.write((end if _piece(letter) <= 1 else b"") + (letter.value or b""))
                end = b"\n"
            file.write(end)
    except OSError as error:
        raise WorkerError(
            f"cannot write {output}: {error.strerror}", "check the path, its rights and the room"
        ) from None
