"""Files as a transport: messages from files or a pipe, outcomes to files or standard output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from worker.codec import Fields, LabelEncoder, encode_dead_letter
from worker.messages import DeadLetter, ErrorKind, Item, Labelled, Place, Record
from worker.transports.formats import InputFile
from worker.transports.outputs import ReplayPosition

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from worker.messages import Outcome
    from worker.transports.formats import Format, Line
    from worker.transports.outputs import Outputs

CHUNK_RECORDS: Final = 2048
CHUNK_BYTES: Final = 256 * 2**10
IDLE_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class Source:
    """An input: its path (`-` for standard input), its name in ids and places, its format."""

    path: str
    name: str
    form: Format


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
        sources: Sequence[Source],
        fields: Fields,
        max_bytes: int,
        outputs: Outputs,
        encoder: LabelEncoder,
    ) -> None:
        """Go on from where the outputs stand; lines over `max_bytes` become dead letters."""
        self._sources = sources
        self._fields = fields
        self._max_bytes = max_bytes
        self._outputs = outputs
        self._encoder = encoder

    def chunks(self) -> Iterator[FileChunk]:
        """Hand out chunks until the inputs end.

        A pipe's chunk ends where there is nothing more to read just now; an idle pipe gives empty
        chunks.

        Raises:
            WorkerError: an input cannot be read.

        """
        while (position := self._outputs.position).input < len(self._sources):
            file = self._open(position)
            try:
                for chunk in self._chunks_of(file, position):
                    yield chunk
                    while self._outputs.position != chunk.position:
                        yield chunk
            finally:
                file.close()

    def complete(self, chunk: FileChunk, outcomes: Sequence[Outcome]) -> None:
        """Append the outcomes, sync them, and note the position.

        Raises:
            WorkerError: an output cannot be written; the position did not move.

        """
        labels = [self._encoder.encode(item) for item in outcomes if isinstance(item, Labelled)]
        letters = [encode_dead_letter(item) for item in outcomes if isinstance(item, DeadLetter)]
        self._outputs.write(labels, letters, chunk.position)

    def _open(self, position: ReplayPosition) -> InputFile:
        source = self._sources[position.input]
        start = position.in_file
        return InputFile(source.path, source.form, self._fields, self._max_bytes, start)

    def _chunks_of(self, file: InputFile, position: ReplayPosition) -> Iterator[FileChunk]:
        """Cut one input into chunks; the last one, maybe empty, moves to the next input."""
        index, name = position.input, self._sources[position.input].name
        rows = file.rows()
        items: list[Item] = []
        size = 0
        while True:
            ready = file.ready(0 if items else IDLE_SECONDS)
            if items and (len(items) >= CHUNK_RECORDS or size >= CHUNK_BYTES or not ready):
                yield FileChunk(items, position, file.bytes_read())
                items, size = [], 0
            elif not ready:
                yield FileChunk([], position, file.bytes_read())
            elif (line := next(rows, None)) is None:
                break
            else:
                items.append(self._item(file, name, line))
                size += len(line.data)
                offset, number, part = line.end
                position = ReplayPosition(input=index, offset=offset, line=number, part=part)
        yield FileChunk(items, ReplayPosition(input=index + 1), file.bytes_read())

    def _item(self, file: InputFile, name: str, line: Line) -> Item:
        record = Record(line.data, Place(name, line.number, line.part))
        if line.part or len(line.data) > self._max_bytes:
            reason = f"the line is longer than {self._max_bytes} bytes"
            return DeadLetter(record, ErrorKind.TOO_LARGE, reason)
        return file.decode(record)
