"""Labelled texts, as `worker finetune`, `worker prepare --eval` and `worker evaluate` read them.

The suffix of a file says whether it holds JSON lines, CSV or TSV; the latter two have a header.
Where a file of label names is given, the file has GoEmotions' form instead, whatever its name:
lines of text, tab and numbers of labels, without a header.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from worker.errors import ExampleFileError
from worker.transports.files.reading import Format, format_of_suffix

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Example:
    """A text and the labels that people gave it."""

    text: str
    labels: frozenset[str]


@dataclass(frozen=True, slots=True)
class ExampleFormat:
    """Where a file of labelled texts has the text and the labels.

    `text_field` and `label_field` are names of JSON fields or of columns; several labels in one
    CSV or TSV cell are separated by commas. With `label_names`, a file of one name a line, the
    file has no header but lines of text, tab and numbers of labels, separated by commas, from 0.
    """

    text_field: str = "text"
    label_field: str = "labels"
    label_names: Path | None = None


def read_examples(path: Path, form: ExampleFormat) -> list[Example]:
    """Read all labelled texts of a file.

    Raises:
        ExampleFileError: the file cannot be read, or a line of it has no text or no known label.

    """
    names = _read_names(form.label_names) if form.label_names else None
    examples = []
    number = 0
    try:
        # Bytes that are not UTF-8 become surrogates, so that the error can name their line.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            for number, text, labels in _rows(path, file, form, names):
                if not isinstance(text, str) or labels is None or not _are_unicode(text, *labels):
                    raise _bad_line(path, number, form)
                examples.append(Example(text, frozenset(labels)))
    except OSError as error:
        raise ExampleFileError(f"cannot read {path}: {error.strerror}", "check the path") from None
    except (ValueError, RecursionError):
        raise _bad_line(path, number + 1, form) from None
    if not examples:
        raise ExampleFileError(f"{path} holds no labelled text", "check that it is the right file")
    return examples


def _rows(
    path: Path, file: TextIO, form: ExampleFormat, names: list[str] | None
) -> Iterator[tuple[int, object, list[str] | None]]:
    if names is not None:
        for number, line in enumerate(file, 1):
            text, numbers = line.rstrip("\r\n").split("\t")[:2]
            yield number, text, [names[_index(n, len(names))] for n in numbers.split(",")]
        return
    if format_of_suffix(path) is Format.JSONL:
        for number, line in enumerate(file, 1):
            row = json.loads(line)
            if not isinstance(row, dict):
                raise _bad_line(path, number, form)
            yield number, row.get(form.text_field), _label_list(row.get(form.label_field))
        return
    reader = _table(path, file)
    for row in _counted(path, reader, form):
        cell = row.get(form.label_field)
        labels = [name.strip() for name in cell.split(",") if name.strip()] if cell else []
        yield reader.line_num, row.get(form.text_field), None if cell is None else labels


def _counted(
    path: Path, reader: csv.DictReader[str], form: ExampleFormat
) -> Iterator[dict[str, str]]:
    try:
        yield from reader
    except csv.Error:
        raise _bad_line(path, reader.line_num, form) from None


def _table(path: Path, file: TextIO) -> csv.DictReader[str]:
    table = format_of_suffix(path)
    if table is Format.TSV:
        return csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    if table is Format.CSV:
        return csv.DictReader(file)
    raise ExampleFileError(
        f"cannot tell what {path.name} is from its name", "name it .jsonl, .csv or .tsv"
    )


def _are_unicode(*texts: str) -> bool:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


def _label_list(value: object) -> list[str] | None:
    labels = [value] if isinstance(value, str) else value
    if isinstance(labels, list) and all(isinstance(label, str) for label in labels):
        return labels
    return None


def _index(number: str, count: int) -> int:
    index = int(number)
    if not 0 <= index < count:
        raise ValueError
    return index


def _read_names(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise ExampleFileError(f"cannot read the label names in {path}") from None
    names = [line.strip() for line in lines if line.strip()]
    if not names or len(set(names)) != len(names):
        raise ExampleFileError(f"{path} must hold distinct label names, one a line")
    return names


def _bad_line(path: Path, number: int, form: ExampleFormat) -> ExampleFileError:
    if form.label_names:
        wanted = f"text, tab, numbers of labels in {form.label_names.name}"
    else:
        wanted = f"a text in '{form.text_field}' and its labels in '{form.label_field}'"
    return ExampleFileError(f"{path}, line {number} is not as expected: {wanted}")
