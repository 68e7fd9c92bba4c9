"""`worker dead-letters list` and `show`: count dead letters, and show each of them.

The content of a record is shown only with `--payload`. Without it, places, kinds, reasons, times and
sizes are shown.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from worker.dead_letters.letters import letters_of_files
from worker.dead_letters.topic import DeadLetterTopic, is_receipt, letter_of
from worker.events.records import FilePlace
from worker.terminal.sentences import counted, escaped, show
from worker.transports.kafka.clients import explained_kafka_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    from worker.dead_letters.letters import Filters, Letter
    from worker.settings.schema import KafkaSettings


def list_letters(settings: KafkaSettings, files: Sequence[Path], filters: Filters) -> None:
    """Print how many dead letters there are, by kind, source and partition.

    The letters are those of `files`, or of the dead-letter topic if no file is given.

    Raises:
        ConfigurationError: the topic does not exist, or a filter does not fit files.
        WorkerError: the letters cannot be read.

    """
    rows: dict[tuple[str, str, int | None], _Count] = {}
    foreign = 0
    for letter in _letters_of(settings, files, filters):
        if letter is None:
            foreign += 1
        elif filters.take(letter):
            key = (letter.kind, letter.source, letter.partition)
            rows.setdefault(key, _Count()).add(letter.time)
    if rows:
        table = [("kind", "from", "partition", "letters", "first", "last")]
        for (kind, source, partition), count in sorted(rows.items(), key=_order):
            number = "-" if partition is None else str(partition)
            table.append((kind, source, number, str(count.letters), *count.times()))
        _print_table(table)
        show()
    show(counted(sum(count.letters for count in rows.values()), "dead letter"))
    if foreign:
        verb = "was" if foreign == 1 else "were"
        records = counted(foreign, "other record")
        show(f"{records} of the topic {verb} not written by this worker")


def show_letters(
    settings: KafkaSettings, files: Sequence[Path], filters: Filters, limit: int, *, payload: bool
) -> None:
    """Print a line for each of the first `limit` dead letters; with `payload`, its content, too.

    The letters are those of `files`, or of the dead-letter topic if no file is given.

    Raises:
        ConfigurationError: the topic does not exist, or a filter does not fit files.
        WorkerError: the letters cannot be read.

    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that is not UTF-8 shows escapes for what it cannot show.
        sys.stdout.reconfigure(errors="backslashreplace")
    letters = _letters_of(settings, files, filters)
    chosen = (letter for letter in letters if letter is not None and filters.take(letter))
    for letter in itertools.islice(chosen, limit):
        show(_line(letter))
        if letter.omitted is not None:
            show(f"  {_where(letter)}")
        elif payload:
            show(f"  {_payload(letter)}")
    if next(chosen, None) is not None:
        show(f"there are more than {limit} dead letters; raise --limit to see them")


def _letters_of(
    settings: KafkaSettings, files: Sequence[Path], filters: Filters
) -> Iterator[Letter | None]:
    """Yield the dead letters of files or, without files, of the topic; None for a foreign record.

    Raises:
        ConfigurationError: the topic does not exist, or a filter does not fit files.
        WorkerError: the letters cannot be read.

    """
    if files:
        yield from letters_of_files(files, filters)
        return
    with explained_kafka_errors(), DeadLetterTopic(settings) as topic:
        for records in topic.read(topic.begin, topic.ends):
            yield from (letter_of(r) for r in records if not is_receipt(r))


@dataclass(slots=True)
class _Count:
    letters: int = 0
    first: datetime | None = None
    last: datetime | None = None

    def add(self, time: datetime | None) -> None:
        self.letters += 1
        if time is not None:
            self.first = min(self.first or time, time)
            self.last = max(self.last or time, time)

    def times(self) -> tuple[str, str]:
        return _formatted(self.first), _formatted(self.last)


def _where(letter: Letter) -> str:
    return (
        "the event was too large for its letter; as long as its topic keeps it, read it with: "
        f"kafka-console-consumer.sh --topic {escaped(letter.source)} --partition "
        f"{letter.partition} --offset {letter.offset} --max-messages 1"
    )


def _line(letter: Letter) -> str:
    part = letter.place.part if isinstance(letter.place, FilePlace) else 0
    sizes = f"key {_size(letter.key)}, value {_size(letter.value)}"
    headers = counted(len(letter.headers), "header")
    if letter.omitted is not None:
        omitted = letter.omitted
        sizes = f"key {_bytes(omitted.key)}, value {_bytes(omitted.value)}"
        headers = f"headers {_bytes(omitted.headers)}"
    return "  ".join(
        [
            escaped(str(letter.place)) + (f" part {part}" if part else ""),
            escaped(letter.kind),
            _formatted(letter.time),
            counted(letter.rounds, "round"),
            f"{sizes}, {headers}",
            escaped(letter.reason),
        ]
    )


def _payload(letter: Letter) -> str:
    content = {
        "key": _readable(letter.key),
        "headers": [[name, _readable(value)] for name, value in letter.headers],
        "value": _readable(letter.value),
    }
    return escaped(json.dumps(content, ensure_ascii=False))


def _readable(data: bytes | None) -> str | dict[str, str] | None:
    try:
        return None if data is None else data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data or b"").decode()}


def _size(data: bytes | None) -> str:
    return _bytes(None if data is None else len(data))


def _bytes(size: int | None) -> str:
    return "null" if size is None else f"{size} B"


def _formatted(time: datetime | None) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ") if time else "-"


def _order(row: tuple[tuple[str, str, int | None], _Count]) -> tuple[str, str, int]:
    (kind, source, partition), _ = row
    return kind, source, partition or 0


def _print_table(rows: Iterable[Sequence[str]]) -> None:
    clean = [[escaped(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*clean, strict=True)]
    for row in clean:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)]
        show("  ".join(cells).rstrip())
