"""Bytes to events and back. A bad record becomes a dead letter, never an exception."""

from __future__ import annotations

import base64
import csv
import json
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import orjson

from worker.events.records import (
    DeadLetter,
    ErrorKind,
    Event,
    FilePlace,
    Item,
    LabelledEvent,
    Record,
    Skipped,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Decoder: TypeAlias = Callable[[Record], Item]

OUTPUT_FIELDS: Final = ("id", "labels", "scores", "model", "digest", "text")


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields of a record to read.

    `keep` are copied to the output as they are. Where `skip` is true no label is asked for; in tables,
    where all is text, and in JSON strings that is written "true".
    """

    text: str = "text"
    id: str = "id"
    keep: tuple[str, ...] = ()
    skip: str | None = None


@dataclass(frozen=True, slots=True)
class LabelEncoder:
    """Writes labelled events as JSON; the same event and model give the same bytes."""

    model: str
    digest: str
    include_text: bool = False

    def encode(self, labelled: LabelledEvent) -> bytes:
        """Return one JSON object in one line, without its end.

        Scores are the shortest decimals that read back as the same float32.
        """
        event, result = labelled.event, labelled.classification
        names, packed = result.scores.names, result.scores.packed
        shared = _result(result.labels, names, packed, self.model, self.digest)
        line = f'{{"id":{_dump(event.id)},{shared}'
        for name, value in event.kept.items():
            line += f",{_dump(name)}:{value}"
        if self.include_text:
            line += f',"text":{_dump(event.text)}'
        return _utf8(line + "}")


def encode_dead_letter(letter: DeadLetter) -> bytes:
    """Return a dead letter as one JSON object in one line, without its end.

    The original bytes stand in `value`, or in `value_base64` where they are not UTF-8.
    """
    place = letter.record.place
    content: dict[str, object] = (
        {"source": place.source, "line": place.line}
        if isinstance(place, FilePlace)
        else {"topic": place.topic, "partition": place.partition, "offset": place.offset}
    )
    content |= {"kind": letter.kind, "reason": letter.reason}
    if isinstance(place, FilePlace) and place.part:
        content["part"] = place.part
    try:
        content["value"] = letter.record.value.decode()
    except UnicodeDecodeError:
        content["value_base64"] = base64.b64encode(letter.record.value).decode()
    return _utf8(_dump(content))


def decode_text(record: Record) -> Item:
    """Take the whole record as a text; its place is its id."""
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
        return _event(record, dict(zip(columns, cells, strict=True)), fields)

    return decode


def split_row(row: bytes, delimiter: str) -> list[str]:
    """Split a row into cells; a tab separates as it is, other delimiters know quotes.

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
    # In Python 1 == True, but in JSON 1 is not true.
    if fields.skip and (content.get(fields.skip) is True or content.get(fields.skip) == "true"):
        return Skipped(record)
    text = content.get(fields.text)
    if not isinstance(text, str):
        problem = "is not a string" if fields.text in content else "is missing"
        reason = f"the field '{fields.text}' {problem}"
        return DeadLetter(record, ErrorKind.NO_TEXT, reason)
    event_id = content.get(fields.id)
    if event_id is None or event_id == "":
        event_id = str(record.place)
    if isinstance(event_id, bool) or not isinstance(event_id, str | int):
        reason = f"the field '{fields.id}' is neither a string nor an integer"
        return DeadLetter(record, ErrorKind.BAD_ID, reason)
    kept = {name: _dump(content[name]) for name in fields.keep if name in content}
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


# Python's own reader takes NaN and Infinity, which are not JSON and would come out again.
_json: Final = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)


def _parsed(text: str) -> Any:  # noqa: ANN401 - JSON
    # The public call looks for white space at both ends, which takes longer than all the rest.
    if text.startswith("{"):
        content, end = _json.raw_decode(text)
        if end == len(text):
            return content
    return _json.decode(text)


# One encoder: json.dumps would make a new one each time.
_dump: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@lru_cache(maxsize=4096)
def _result(
    given: tuple[str, ...],
    labels: tuple[str, ...],
    packed: bytes,
    model: str,
    digest: str,
) -> str:
    """Return what stands between the id and what was kept; most messages share it with others."""
    array = np.frombuffer(packed, dtype=np.float32)
    numbers = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].decode().split(",")
    return _template(given, labels, model, digest) % tuple(numbers[: len(labels)])


@lru_cache(maxsize=1024)
def _template(given: tuple[str, ...], labels: tuple[str, ...], model: str, digest: str) -> str:
    """Return the same with %s for each score."""
    scores = ",".join(f"{_dump(label)}:\0" for label in labels)
    line = (
        f'"labels":{_dump(given)},"scores":{{{scores}}},'
        f'"model":{_dump(model)},"digest":{_dump(digest)}'
    )
    # JSON has no such byte in it.
    return line.replace("%", "%%").replace("\0", "%s")


def _utf8(line: str) -> bytes:
    try:
        return line.encode()
    except UnicodeEncodeError:
        # Half a surrogate pair is JSON only as an escape.
        escaped = (c if not "\ud800" <= c <= "\udfff" else f"\\u{ord(c):04x}" for c in line)
        return "".join(escaped).encode()
