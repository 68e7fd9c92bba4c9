"""Decodes records into events. A bad record becomes a dead letter, never an exception."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from worker import defaults
from worker.events.encoding import to_json
from worker.events.records import DeadLetter, ErrorKind, Event, Item, Record, Skipped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Decoder: TypeAlias = Callable[[Record], Item]


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields of a record to read.

    The fields `keep` are copied to the output as they are. A record whose field `skip` is true is
    not labelled: in JSON the value true, and nothing else that Python takes for it, such as 1; in a
    table, where every cell is a text, the cell "true".
    """

    text: str = "text"
    id: str = "id"
    keep: tuple[str, ...] = ()
    skip: str | None = None
    max_id_length: int = defaults.MAX_ID_LENGTH


def decode_text(record: Record) -> Item:
    """Take the whole record as a text; its place becomes its id."""
    try:
        return Event(record, str(record.place), record.value.decode())
    except UnicodeDecodeError:
        return _not_utf8(record)


def json_decoder(fields: Fields) -> Decoder:
    """Return a decoder of JSON objects."""

    def decode(record: Record) -> Item:
        try:
            content = _parsed(record.value.decode())
        except UnicodeDecodeError:
            return _not_utf8(record)
        except (ValueError, RecursionError):
            return DeadLetter(record, ErrorKind.NOT_JSON, "the record is not valid JSON")
        if not isinstance(content, dict):
            return DeadLetter(record, ErrorKind.NOT_JSON, "the record is not a JSON object")
        if fields.skip and content.get(fields.skip) is True:
            return Skipped(record)
        try:
            return _event(record, content, fields)
        except RecursionError:
            reason = "a field to keep is nested too deeply"
            return DeadLetter(record, ErrorKind.NOT_JSON, reason)

    return decode


def row_decoder(columns: Sequence[str], fields: Fields, delimiter: str) -> Decoder:
    """Return a decoder of rows under a header: TSV where the delimiter is a tab, else CSV."""

    def decode(record: Record) -> Item:
        try:
            cells = split_row(record.value, delimiter)
        except UnicodeDecodeError:
            return _not_utf8(record)
        except csv.Error:
            return DeadLetter(record, ErrorKind.BAD_ROW, "the row's quotes do not match")
        if len(cells) != len(columns):
            reason = f"the row has {len(cells)} fields where the header has {len(columns)}"
            return DeadLetter(record, ErrorKind.BAD_ROW, reason)
        content = dict(zip(columns, cells, strict=True))
        if fields.skip and content.get(fields.skip) == "true":
            return Skipped(record)
        return _event(record, content, fields)

    return decode


def split_row(row: bytes, delimiter: str) -> list[str]:
    """Split a row into cells: at every tab, or, with another delimiter, as CSV with quotes.

    Raises:
        UnicodeDecodeError: the row is not UTF-8.
        csv.Error: its quotes do not match.

    """
    text = row.decode()
    if delimiter == "\t":
        return text.split("\t")
    csv.field_size_limit(max(len(text), csv.field_size_limit()))
    rows = list(csv.reader([text], delimiter=delimiter, strict=True))
    return rows[0] if rows else [""]


def _event(record: Record, content: Mapping[str, Any], fields: Fields) -> Item:
    text = content.get(fields.text)
    if not isinstance(text, str):
        problem = "is not a string" if fields.text in content else "is missing"
        reason = f"the field '{fields.text}' {problem}"
        return DeadLetter(record, ErrorKind.NO_TEXT, reason)
    event_id = content.get(fields.id)
    if event_id is None or event_id == "":
        event_id = str(record.place)
    # Python's booleans are integers, JSON's are not.
    if isinstance(event_id, bool) or not isinstance(event_id, str | int):
        reason = f"the field '{fields.id}' is neither a string nor an integer"
        return DeadLetter(record, ErrorKind.BAD_ID, reason)
    if isinstance(event_id, str) and len(event_id) > fields.max_id_length:
        reason = f"the field '{fields.id}' is longer than {fields.max_id_length} characters"
        return DeadLetter(record, ErrorKind.ID_TOO_LONG, reason)
    kept = {name: to_json(content[name]) for name in fields.keep if name in content}
    return Event(record, event_id, text, kept)


def _not_utf8(record: Record) -> DeadLetter:
    return DeadLetter(record, ErrorKind.NOT_UTF8, "the record is not valid UTF-8")


def _refuse_constant(name: str) -> float:
    raise ValueError(name)


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError("a number beyond the range of doubles")
    return value


# By itself, Python's decoder accepts NaN and Infinity, which are not JSON, and a field to keep would
# be written with them.
_json: Final = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)


def _parsed(text: str) -> Any:  # noqa: ANN401 - any JSON value
    # `decode` looks for white space at both ends, which takes longer than all the rest.
    if text.startswith("{"):
        content, end = _json.raw_decode(text)
        if end == len(text):
            return content
    return _json.decode(text)
