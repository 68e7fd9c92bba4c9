"""Files as a transport: it reads events from files or a pipe, and writes outcomes to outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from worker.defaults import CHUNK_RECORDS
from worker.events.encoding import LabelEncoder, encode_dead_letter
from worker.events.records import DeadLetter, ErrorKind, FilePlace, Item, LabelledEvent, Record
from worker.transports.files.reading import InputFile
from worker.transports.files.writing import EncodedOutcomes, ReplayPosition

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from worker.events.decoding import Fields
    from worker.events.records import Outcome
    from worker.transports.files.reading import Format, Line
    from worker.transports.files.writing import Outputs

CHUNK_BYTES: Final = 256 * 2**10
IDLE_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class InputSource:
    """An input: its path (`-` for standard input), its name in ids and places, its format."""

    path: str
    name: str
    form: Format


class Shard(NamedTuple):
    """Which chunks a process labels: every `of`-th, from `number` on, counted from 0."""

    number: int = 0
    of: int = 1


@dataclass(frozen=True, slots=True)
class FileChunk:
    """Records of one input, and the position after them."""

    items: Sequence[Item]
    position: ReplayPosition
    bytes_read: int


class FileTransport:
    """Reads inputs one after the other, and writes outcomes in the same order."""

    def __init__(
        self,
        sources: Sequence[InputSource],
        fields: Fields,
        max_bytes: int,
        outputs: Outputs,
        encoder: LabelEncoder,
    ) -> None:
        """Continue at the position of the outputs; lines over `max_bytes` become dead letters."""
        self._sources = sources
        self._fields = fields
        self._max_bytes = max_bytes
        self._outputs = outputs
        self._encoder = encoder
        self.shard = Shard()

    def chunks(self) -> Iterator[FileChunk]:
        """Hand out chunks until the inputs end.

        A pipe's chunk ends where there is nothing more to read just now; an idle pipe gives empty
        chunks.

        Raises:
            WorkerError: an input cannot be read.

        """
        position = self._outputs.position
        number = 0
        while position.input < len(self._sources):
            file = self._open(position)
            try:
                for lines, end in self._cut(file, position):
                    if number % self.shard.of == self.shard.number:
                        chunk = self._chunk(file, position.input, lines, end)
                        yield chunk
                        while self._outputs.position != end:
                            yield chunk
                    number += 1
            finally:
                file.close()
            position = end

    def complete(self, chunk: FileChunk, outcomes: Sequence[Outcome]) -> None:
        """Append the outcomes to the outputs, and move to the position after the chunk.

        Raises:
            WorkerError: an output cannot be written; the position did not move.

        """
        labelled = [item for item in outcomes if isinstance(item, LabelledEvent)]
        encoded = EncodedOutcomes(
            [self._encoder.encode(item) for item in labelled],
            [encode_dead_letter(item) for item in outcomes if isinstance(item, DeadLetter)],
            sum(item.classification.truncated for item in labelled),
        )
        self._outputs.write(encoded, chunk.position)

    def _open(self, position: ReplayPosition) -> InputFile:
        source = self._sources[position.input]
        start = position.in_file
        return InputFile(source.path, source.form, self._fields, self._max_bytes, start)

    def _cut(
        self, file: InputFile, begin: ReplayPosition
    ) -> Iterator[tuple[Sequence[Line], ReplayPosition]]:
        """Yield the lines of each chunk of an input, and the position after it.

        The position after the last chunk, which may be empty, is in the next input.
        """
        rows = file.rows()
        lines: list[Line] = []
        size = 0
        position = begin
        only_blank = False
        while True:
            full = len(lines) >= CHUNK_RECORDS or size >= CHUNK_BYTES
            waits = only_blank or not file.ready(0 if lines else IDLE_SECONDS)
            only_blank = False
            if lines and (full or waits):
                offset, line_number, part = lines[-1].end
                position = ReplayPosition(
                    input=begin.input, offset=offset, line=line_number, part=part
                )
                yield lines, position
                lines, size = [], 0
            elif waits:
                yield [], position
            else:
                try:
                    line = next(rows)
                except StopIteration:
                    break
                only_blank = line is None
                if line:
                    lines.append(line)
                    size += len(line.data)
        yield lines, ReplayPosition(input=begin.input + 1)

    def _chunk(
        self, file: InputFile, index: int, lines: Sequence[Line], position: ReplayPosition
    ) -> FileChunk:
        name = self._sources[index].name
        items = [self._item(file, name, line) for line in lines]
        return FileChunk(items, position, file.bytes_read())

    def _item(self, file: InputFile, name: str, line: Line) -> Item:
        record = Record(line.data, FilePlace(name, line.number, line.part))
        if line.part or len(line.data) > self._max_bytes:
            reason = f"the line is longer than {self._max_bytes} bytes"
            return DeadLetter(record, ErrorKind.TOO_LARGE, reason)
        return file.decode(record)
