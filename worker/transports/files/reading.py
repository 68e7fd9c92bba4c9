"""Reads records from files: JSON lines, plain text, CSV or TSV, each of them also packed by gzip.

A line longer than the limit comes in pieces, so that memory stays bounded and no byte is lost.
"""

from __future__ import annotations

import csv
import gzip
import os
import select
import sys
import zlib
from collections import deque
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NamedTuple

from worker.errors import ConfigurationError, WorkerError
from worker.events.decoding import decode_text, json_decoder, row_decoder, split_row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.events.decoding import Decoder, Fields

STANDARD_INPUT: Final = "-"
_READ_BYTES: Final = 2**16
# A quote that never closes makes up to this many lines be read twice.
_ROW_LINES: Final = 1000
_BLANK_LINES: Final = 10_000
# Chat packs to a tenth at best, by gzip. What a file of messages unpacks to is labelled message by
# message: without a bound, a few kilobytes of packed newlines would fill a disk with labels.
_MOST_EXPANSION: Final = 100
_EXPANSION_FROM_BYTES: Final = 2**20
# Of padding or empty parts, before anything is unpacked.
_MOST_PACKED: Final = 2**20
_QUOTE: Final = ord('"')
_AFTER_A_QUOTE: Final = {b",", b"\r", b""}
_UNREADABLE: Final = (OSError, EOFError, zlib.error)
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class Format(StrEnum):
    """How a file holds its messages."""

    JSONL = "jsonl"
    TEXT = "text"
    CSV = "csv"
    TSV = "tsv"


_FORMAT_OF_SUFFIX: Final = {
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".json": Format.JSONL,
    ".txt": Format.TEXT,
    ".csv": Format.CSV,
    ".tsv": Format.TSV,
}


def format_of_suffix(path: Path) -> Format | None:
    """Return the format that a file's suffix names, in upper or lower case; None if it names none."""
    return _FORMAT_OF_SUFFIX.get(path.suffix.lower())


def format_of(path: str) -> Format:
    """Return a file's format by the suffix of its name; a `.gz` at the end does not count.

    Raises:
        ConfigurationError: the suffix names no format.

    """
    form = format_of_suffix(Path(path.removesuffix(".gz")))
    if form is None:
        name = "standard input" if path == STANDARD_INPUT else path
        raise ConfigurationError(
            f"cannot tell the format of {name}", f"say --format {'|'.join(Format)}"
        )
    return form


class FilePosition(NamedTuple):
    """Where reading goes on.

    `offset` counts the bytes of the unpacked file before it, `line` the whole lines, and `part` the
    pieces of the next line.
    """

    offset: int = 0
    line: int = 0
    part: int = 0


class Line(NamedTuple):
    """A line without its newline (`part` is 0), or a piece of a long one (`part` counts from 1)."""

    data: bytes
    number: int
    part: int
    end: FilePosition


class LineReader:
    """Reads lines of a binary file from a position on."""

    def __init__(self, file: IO[bytes], limit: int, start: FilePosition) -> None:
        """Read lines of up to `limit` bytes; the file stands at `start`, where a line ended."""
        self._file = file
        self._limit = limit
        self._buffer = b""
        self._cursor = 0
        self._position = start

    def ready(self, seconds: float) -> bool:
        """Return whether there is something to read; an empty pipe is waited for so long."""
        if self._buffer.find(b"\n", self._cursor) >= 0:
            return True
        try:
            return bool(select.select([self._file], [], [], seconds)[0])
        except (OSError, ValueError):
            return True

    def next_line(self) -> Line | None:
        """Return the next line or piece of a line; None at the end of the file."""
        window = self._limit + 1
        while (newline := self._buffer.find(b"\n", self._cursor, self._cursor + window)) < 0:
            if len(self._buffer) - self._cursor >= window or not self._fill():
                break
        left = len(self._buffer) - self._cursor
        if newline >= 0:
            return self._take(newline - self._cursor, ends_line=True, newline=1)
        if left == 0:
            return None
        return self._take(min(left, self._limit), ends_line=left <= self._limit, newline=0)

    def _take(self, length: int, *, ends_line: bool, newline: int) -> Line:
        data = self._buffer[self._cursor : self._cursor + length]
        self._cursor += length + newline
        offset, line, part = self._position
        if offset == 0:
            data = data.removeprefix(_BYTE_ORDER_MARK)
        offset += length + newline
        number = line + 1
        if ends_line:
            self._position = FilePosition(offset, number, 0)
            return Line(data, number, part + 1 if part else 0, self._position)
        self._position = FilePosition(offset, line, part + 1)
        return Line(data, number, part + 1, self._position)

    def _fill(self) -> bool:
        read: bytes = self._file.read1(_READ_BYTES)  # type: ignore[attr-defined]  # of BinaryIO typeshed knows less
        self._buffer = self._buffer[self._cursor :] + read
        self._cursor = 0
        return bool(read)


class _PackedFile:
    """A packed file, as gzip reads it, of which no part may be long and hold nothing."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.position = 0
        self.left = _MOST_PACKED
        self._file = Path(path).open("rb")  # noqa: SIM115 - closed by `close`

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.position += len(data)
        self.left -= len(data)
        if self.left < 0:
            raise self.refusal("has long stretches that unpack to nothing")
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = self._file.seek(offset, whence)
        return self.position

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()

    def refusal(self, what: str) -> WorkerError:
        return WorkerError(
            f"cannot read {self.path}: it {what}",
            "if it is to be trusted, unpack it yourself: gunzip",
        )


class _GzipFile(gzip.GzipFile):
    """Packed data that must not expand further than messages do."""

    def __init__(self, path: str) -> None:
        self.packed = _PackedFile(path)
        super().__init__(fileobj=self.packed, mode="rb")

    def read1(self, size: int = -1) -> bytes:
        self.packed.left = _MOST_PACKED
        data = super().read1(size)
        unpacked = self.tell()
        if unpacked > _EXPANSION_FROM_BYTES and unpacked > _MOST_EXPANSION * self.packed.position:
            raise self.packed.refusal(f"unpacks to more than {_MOST_EXPANSION} times its size")
        return data

    def close(self) -> None:
        super().close()
        self.packed.close()


class InputFile:
    """One input, opened at a position: it yields records as bytes, and `decode` decodes one."""

    def __init__(
        self, path: str, form: Format, fields: Fields, limit: int, start: FilePosition
    ) -> None:
        """Open a file, or standard input for `-`.

        Raises:
            ConfigurationError: a table's header has no column of texts.
            WorkerError: the file cannot be read.

        """
        self.path = path
        self._form = form
        self._limit = limit
        self._ahead: deque[Line] = deque()
        # How many of the first of them, of how many bytes, leave quotes open, and the line behind
        # these: whether its end is inside quotes, where its start is.
        self._open = self._open_bytes = 0
        self._closing: tuple[Line, bool | None] | None = None
        try:
            self._file = _open(path)
        except OSError as error:
            raise _cannot_read(path, error) from None
        try:
            self._lines = LineReader(self._file, limit, FilePosition())
            self.decode = self._decoder(fields)
            if start.offset:
                self._file.seek(start.offset)
                self._lines = LineReader(self._file, limit, start)
        except _UNREADABLE as error:
            self.close()
            raise _cannot_read(path, error) from None
        except WorkerError:
            self.close()
            raise

    def ready(self, seconds: float) -> bool:
        """Return whether a record can be read; an empty pipe is waited for so long."""
        return bool(self._ahead) or self._lines.ready(seconds)

    def bytes_read(self) -> int:
        """Return how many bytes of the file were read, before they were unpacked; 0 for a pipe."""
        if isinstance(self._file, _GzipFile):
            return self._file.packed.position
        return self._file.tell() if self._file.seekable() else 0

    def rows(self) -> Iterator[Line | None]:
        """Yield the records; a blank line is one in plain text only.

        After many blank lines comes a None, so that a file of nothing else can be left.

        Raises:
            WorkerError: the rest of the file cannot be read.

        """
        blank = 0
        try:
            while (line := self._next_line()) is not None:
                row = self._whole_row(line) if self._form is Format.CSV else line
                data = row.data if row.part else row.data.removesuffix(b"\r")
                if row.part or not self._is_blank(data):
                    yield row._replace(data=data)
                elif (blank := blank + 1) % _BLANK_LINES == 0:
                    yield None
        except _UNREADABLE as error:
            raise _cannot_read(self.path, error) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _is_blank(self, row: bytes) -> bool:
        if self._form is Format.JSONL:
            return not row.strip()
        return not row and self._form is not Format.TEXT

    def _next_line(self) -> Line | None:
        if not self._ahead:
            return self._lines.next_line()
        line = self._ahead.popleft()
        if self._open:
            self._open -= 1
            self._open_bytes -= len(line.data) + 1
        return line

    def _whole_row(self, first: Line) -> Line:
        """Join the lines of a row that has a line end inside quotes.

        The first line stands alone, and becomes a dead letter, where the quotes do not close
        within the limit of bytes and a thousand lines, or close in the middle of a field. The lines
        after it are rows of their own, so that one stray quote costs one row. Whichever of them opens
        quotes next, these stay open over the same lines, which are not looked at again.
        """
        if first.part or not ends_inside_quotes(first.data, inside=False):
            return first
        while True:
            line = self._look_ahead(self._open)
            size = len(first.data) + self._open_bytes + (len(line.data) + 1 if line else 0)
            too_long = size > self._limit or self._open + 1 >= _ROW_LINES
            if line is None or line.part or too_long:
                return first
            if self._closing is None or self._closing[0] is not line:
                self._closing = line, ends_inside_quotes(line.data, inside=True)
            inside = self._closing[1]
            if not inside:
                break
            self._open += 1
            self._open_bytes += len(line.data) + 1
        lines = [first, *islice(self._ahead, self._open + 1)]
        row = b"\n".join(each.data for each in lines)
        if inside is None or not _is_row(row):
            return first
        for _ in lines[1:]:
            self._next_line()
        return first._replace(data=row, end=line.end)

    def _look_ahead(self, lines: int) -> Line | None:
        """Return the line that comes after so many lines, which have been looked at."""
        if lines == len(self._ahead) and (line := self._lines.next_line()) is not None:
            self._ahead.append(line)
        return self._ahead[lines] if lines < len(self._ahead) else None

    def _decoder(self, fields: Fields) -> Decoder:
        if self._form is Format.TEXT:
            return decode_text
        if self._form is Format.JSONL:
            return json_decoder(fields)
        delimiter = "\t" if self._form is Format.TSV else ","
        header = self._lines.next_line()
        try:
            whole = header.data.removesuffix(b"\r") if header and not header.part else b""
            columns = split_row(whole, delimiter)
        except (UnicodeDecodeError, csv.Error):
            columns = []
        if fields.text not in columns:
            raise ConfigurationError(
                f"the header of {self.path} has no column '{fields.text}'",
                "name the column of texts with --text-field",
            )
        return row_decoder(columns, fields, delimiter)


def ends_inside_quotes(line: bytes, *, inside: bool) -> bool | None:
    """Return whether a CSV line ends inside a quoted field, given whether it starts inside one.

    It is None where no row can be so: something follows the quote that closes a field, or a carriage
    return stands in the middle of a field without quotes.
    The rules are those of RFC 4180: a field is quoted only if it starts with a quote, and two
    quotes inside it stand for one.
    """
    cursor = 0
    end = len(line.rstrip(b"\r"))
    returns = line.find(b"\r", 0, end) >= 0
    while cursor < len(line):
        if not inside and line[cursor] == _QUOTE:
            inside = True
            cursor += 1
        if inside:
            cursor = line.find(b'"', cursor) + 1
            if cursor == 0:
                return True
            if line[cursor : cursor + 1] == b'"':
                cursor += 1
                continue
            inside = False
            if line[cursor : cursor + 1] not in _AFTER_A_QUOTE:
                return None
        begin, cursor = cursor, line.find(b",", cursor) + 1
        if returns and line.find(b"\r", begin, cursor or end) >= 0:
            return None
        if cursor == 0:
            return False
    return inside


def _is_row(row: bytes) -> bool:
    try:
        split_row(row, ",")
    except csv.Error:
        return False
    except UnicodeDecodeError:
        return True
    return True


def _open(path: str) -> IO[bytes]:
    if path == STANDARD_INPUT:
        if sys.stdin is None:
            raise WorkerError("standard input is closed", "name a file instead of -")
        return sys.stdin.buffer
    if path.endswith(".gz"):
        return _GzipFile(path)  # type: ignore[return-value]  # typeshed does not call it a file
    return Path(path).open("rb")


def _cannot_read(path: str, error: Exception) -> WorkerError:
    if isinstance(error, OSError) and error.strerror:
        return WorkerError(f"cannot read {path}: {error.strerror}", "check the path")
    return WorkerError(f"cannot read {path}: its gzip data is damaged or cut off", "restore it")
