"""Decoding and encoding: a record becomes an event or a dead letter, and no byte of it is lost."""

from __future__ import annotations

import base64
import decimal
import json
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.classifications import classified
from worker.events.decoding import Fields, decode_text, json_decoder, row_decoder, split_row
from worker.events.encoding import OUTPUT_FIELDS, LabelEncoder, encode_dead_letter
from worker.events.records import (
    DeadLetter,
    ErrorKind,
    Event,
    FilePlace,
    LabelledEvent,
    Record,
    Skipped,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.events.decoding import Decoder

    Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None

PLACE = FilePlace("chat.jsonl", 7)
MARKER = "tulip"
JSON_DECODER = json_decoder(Fields())
# These are the texts that JSON can carry: half of a surrogate pair may be alone, but two halves that
# belong together become one character.
JSON_TEXT = st.text(st.characters()).map(lambda text: str(json.loads(json.dumps(text))))
JSON_VALUE: st.SearchStrategy[Json] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | JSON_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(JSON_TEXT, inner, max_size=3),
    max_leaves=8,
)


def record(value: bytes | str) -> Record:
    return Record(value.encode() if isinstance(value, str) else value, PLACE)


def event_of(value: bytes | str, decoder: Decoder = JSON_DECODER) -> Event:
    item = decoder(record(value))
    assert isinstance(item, Event)
    return item


def letter_of(value: bytes | str, decoder: Decoder = JSON_DECODER) -> DeadLetter:
    item = decoder(record(value))
    assert isinstance(item, DeadLetter)
    assert item.record == record(value)
    return item


def labelled(
    text: str = "gg",
    event_id: str | int = "m-1",
    kept: Mapping[str, str] | None = None,
    scores: Mapping[str, float] | None = None,
) -> LabelledEvent:
    event = Event(record("{}"), event_id, text, kept or {})
    return LabelledEvent(event, classified(scores or {"anger": 0.25, "joy": 0.5}, "joy"))


def encode(labelled: LabelledEvent, *, include_text: bool = False) -> bytes:
    return LabelEncoder("emotion", "0a1b", include_text=include_text).encode(labelled)


# Decoding.


def test_a_json_object_with_text_and_id_is_an_event() -> None:
    value = '{"id": "m-1", "text": "gg wp ☀️", "room": "lobby"}'
    assert event_of(value) == Event(record(value), "m-1", "gg wp ☀️")


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (b'{"text": "caf\xe9"}', ErrorKind.NOT_UTF8),
        (b"\xff\xfe{\x00}\x00", ErrorKind.NOT_UTF8),
        (b'{"text": "\xed\xa0\x80"}', ErrorKind.NOT_UTF8),
        (b'{"text": "a"', ErrorKind.NOT_JSON),
        (b"{'text': 'a'}", ErrorKind.NOT_JSON),
        (b'{"text": "a"} {"text": "b"}', ErrorKind.NOT_JSON),
        (b'{"text": "a\tb"}', ErrorKind.NOT_JSON),
        (b"", ErrorKind.NOT_JSON),
        (b'["text"]', ErrorKind.NOT_JSON),
        (b'"text"', ErrorKind.NOT_JSON),
        (b"null", ErrorKind.NOT_JSON),
        (b"{}", ErrorKind.NO_TEXT),
        (b'{"Text": "a"}', ErrorKind.NO_TEXT),
        (b'{"text": null}', ErrorKind.NO_TEXT),
        (b'{"text": 7}', ErrorKind.NO_TEXT),
        (b'{"text": ["a"]}', ErrorKind.NO_TEXT),
        (b'{"text": "a", "id": 1.5}', ErrorKind.BAD_ID),
        (b'{"text": "a", "id": 1.0}', ErrorKind.BAD_ID),
        (b'{"text": "a", "id": true}', ErrorKind.BAD_ID),
        (b'{"text": "a", "id": ["m-1"]}', ErrorKind.BAD_ID),
        (b'{"text": "a", "id": {"m": 1}}', ErrorKind.BAD_ID),
    ],
)
def test_a_json_record_that_cannot_be_labelled_is_a_dead_letter(
    value: bytes, kind: ErrorKind
) -> None:
    assert letter_of(value).kind is kind


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_that_json_or_a_double_cannot_hold_are_refused_wherever_they_stand(
    number: str,
) -> None:
    value = f'{{"text": "a", "other": [{{"deep": {number}}}]}}'
    assert letter_of(value).kind is ErrorKind.NOT_JSON


def test_an_integer_of_thousands_of_digits_is_refused() -> None:
    assert letter_of(f'{{"text": "a", "id": {"9" * 10_000}}}').kind is ErrorKind.NOT_JSON


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
def test_nesting_beyond_all_measure_is_refused(opening: str) -> None:
    assert letter_of('{"text": "a", "x": ' + opening * 100_000).kind is ErrorKind.NOT_JSON
    assert letter_of(opening * 100_000).kind is ErrorKind.NOT_JSON


@pytest.mark.parametrize(
    ("value", "event_id"),
    [
        (b'{"text": "a", "id": 7}', 7),
        (b'{"text": "a", "id": 0}', 0),
        (b'{"text": "a", "id": "7"}', "7"),
        (b'{"text": "a", "id": 18446744073709551616}', 2**64),
    ],
)
def test_an_id_keeps_its_type(value: bytes, event_id: str | int) -> None:
    event = event_of(value)
    assert (event.id, type(event.id)) == (event_id, type(event_id))


@pytest.mark.parametrize(
    "value", ['{"text": "a"}', '{"text": "", "id": ""}', '{"text":"","id":null}']
)
def test_a_record_without_an_id_is_named_by_its_place(value: str) -> None:
    assert event_of(value).id == "chat.jsonl:7"


def test_the_fields_to_read_can_be_named() -> None:
    decoder = json_decoder(Fields(text="body", id="key"))
    event = event_of('{"key": 3, "body": "gg", "text": "other", "id": "other"}', decoder)
    assert (event.id, event.text) == (3, "gg")
    assert letter_of('{"key": 3, "text": "gg"}', decoder).reason == "the field 'body' is missing"


def test_fields_to_keep_are_kept_where_there_are_any_and_no_others() -> None:
    decoder = json_decoder(Fields(keep=("user", "at", "absent")))
    event = event_of('{"text": "a", "at": null, "user": {"id": [1, 2.5]}, "room": "b"}', decoder)
    assert event.kept == {"user": '{"id":[1,2.5]}', "at": "null"}


@pytest.mark.parametrize(
    ("value", "skipped"),
    [
        ("true", True),
        ("false", False),
        ("null", False),
        ("1", False),
        ("1.0", False),
        ('"true"', False),
        ("[true]", False),
        ('{"true": true}', False),
    ],
)
def test_a_json_record_is_skipped_where_the_field_is_true_and_nothing_like_it(
    value: str, *, skipped: bool
) -> None:
    item = json_decoder(Fields(skip="bot"))(record(f'{{"text": "gg", "bot": {value}}}'))
    assert isinstance(item, Skipped) == skipped


def test_a_record_that_is_skipped_needs_no_text() -> None:
    assert isinstance(json_decoder(Fields(skip="bot"))(record('{"bot": true}')), Skipped)
    assert isinstance(json_decoder(Fields(skip="bot"))(record('{"text": "gg"}')), Event)
    assert isinstance(json_decoder(Fields())(record('{"text": "gg", "bot": true}')), Event)


@pytest.mark.parametrize(
    ("cell", "skipped"), [("true", True), ("True", False), ("1", False), ("", False)]
)
def test_a_row_is_skipped_where_the_cell_is_the_word_true(cell: str, *, skipped: bool) -> None:
    decoder = row_decoder(["text", "bot"], Fields(skip="bot"), "\t")
    assert isinstance(decoder(record(f"gg\t{cell}")), Skipped) == skipped


def test_a_text_record_is_its_text_named_by_its_place() -> None:
    assert event_of(' "gg" \x00', decode_text) == Event(
        record(' "gg" \x00'), "chat.jsonl:7", ' "gg" \x00'
    )
    assert letter_of(b"caf\xe9", decode_text).kind is ErrorKind.NOT_UTF8


def test_a_row_is_read_under_its_header() -> None:
    decoder = row_decoder(["room", "text", "id"], Fields(keep=("room",)), ",")
    event = event_of('lobby,"gg, ""wp""\nall",m-1', decoder)
    assert (event.id, event.text, event.kept) == ("m-1", 'gg, "wp"\nall', {"room": '"lobby"'})


def test_a_row_with_an_empty_id_is_named_by_its_place() -> None:
    assert event_of(",gg", row_decoder(["id", "text"], Fields(), ",")).id == "chat.jsonl:7"


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (b"m-1,caf\xe9", ErrorKind.NOT_UTF8),
        (b"m-1", ErrorKind.BAD_ROW),
        (b"m-1,gg,wp", ErrorKind.BAD_ROW),
        (b'm-1,"gg', ErrorKind.BAD_ROW),
        (b'm-1,"gg" wp', ErrorKind.BAD_ROW),
        (b"m-1,g\rg", ErrorKind.BAD_ROW),
        (b"", ErrorKind.BAD_ROW),
    ],
)
def test_a_csv_row_that_cannot_be_labelled_is_a_dead_letter(value: bytes, kind: ErrorKind) -> None:
    assert letter_of(value, row_decoder(["id", "text"], Fields(), ",")).kind is kind


def test_a_row_says_how_many_fields_it_has() -> None:
    letter = letter_of("a,b,c", row_decoder(["id", "text"], Fields(), ","))
    assert letter.reason == "the row has 3 fields where the header has 2"


def test_quotes_mean_nothing_in_tsv() -> None:
    event = event_of('m-1\t"gg, ""wp', row_decoder(["id", "text"], Fields(), "\t"))
    assert (event.id, event.text) == ("m-1", '"gg, ""wp')


def test_a_cell_may_be_longer_than_the_csv_modules_own_limit() -> None:
    assert split_row(b'1,"' + b"a" * 200_000 + b'"', ",") == ["1", "a" * 200_000]


@pytest.mark.parametrize(
    ("decoder", "value"),
    [
        (JSON_DECODER, f'{{"{MARKER}": "{MARKER}"'),
        (JSON_DECODER, f'["{MARKER}"]'),
        (JSON_DECODER, f"{MARKER}"),
        (JSON_DECODER, f'{{"{MARKER}": "{MARKER}", "id": "{MARKER}"}}'),
        (JSON_DECODER, f'{{"text": ["{MARKER}"]}}'),
        (JSON_DECODER, f'{{"text": "{MARKER}", "id": ["{MARKER}"]}}'),
        (JSON_DECODER, MARKER.encode() + b"\xff"),
        (decode_text, MARKER.encode() + b"\xff"),
        (row_decoder(["id", "text"], Fields(), ","), f'{MARKER},"{MARKER}'),
        (row_decoder(["id", "text"], Fields(), ","), f"{MARKER},{MARKER},{MARKER}"),
        (row_decoder(["id", "text"], Fields(), "\t"), MARKER),
        (row_decoder(["id", "text"], Fields(), "\t"), MARKER.encode() + b"\xff"),
    ],
)
def test_a_reason_holds_nothing_of_the_record(decoder: Decoder, value: bytes | str) -> None:
    assert MARKER not in letter_of(value, decoder).reason


@given(st.binary() | JSON_VALUE.map(json.dumps).map(str.encode))
def test_no_record_raises_whatever_its_bytes(value: bytes) -> None:
    for decoder in (JSON_DECODER, decode_text, row_decoder(["text"], Fields(), ",")):
        assert decoder(record(value)).record.value == value


# Encoding.


def test_a_labelled_event_is_one_object_whose_fields_have_an_order() -> None:
    line = encode(labelled("gg ☀️", kept={"room": '"lobby"'}), include_text=True)
    assert line.decode() == (
        '{"id":"m-1","labels":["joy"],"scores":{"anger":0.25,"joy":0.5},'
        '"model":"emotion","digest":"0a1b","room":"lobby","text":"gg ☀️"}'
    )


def test_the_fields_of_the_output_are_those_that_cannot_be_kept() -> None:
    event, classification = labelled()
    cut = LabelledEvent(event, classification._replace(truncated=True))
    assert tuple(json.loads(encode(cut, include_text=True))) == OUTPUT_FIELDS


def test_only_a_text_that_was_truncated_is_said_to_be() -> None:
    event, classification = labelled(kept={"room": "1"})
    cut = LabelledEvent(event, classification._replace(truncated=True))
    assert json.loads(encode(cut))["truncated"] is True
    assert encode(cut).replace(b',"truncated":true', b"") == encode(
        LabelledEvent(event, classification)
    )


def test_the_text_is_left_out_unless_asked_for() -> None:
    assert "text" not in json.loads(encode(labelled("gg")))
    assert json.loads(encode(labelled("gg"), include_text=True))["text"] == "gg"


@pytest.mark.parametrize("event_id", ["7", 7, 2**64, ""])
def test_an_id_is_written_as_it_was_read(event_id: str | int) -> None:
    assert json.loads(encode(labelled(event_id=event_id)))["id"] == event_id


@given(st.dictionaries(JSON_TEXT, JSON_VALUE, max_size=4))
def test_kept_fields_come_out_as_they_came_in(content: dict[str, Json]) -> None:
    names = tuple(name for name in content if name not in OUTPUT_FIELDS)
    decoder = json_decoder(Fields(keep=names))
    event = event_of(json.dumps({**content, "text": "gg", "id": "m-1"}), decoder)
    output = json.loads(encode(labelled(kept=event.kept)))
    assert repr([output[name] for name in names]) == repr([content[name] for name in names])


def test_whatever_nesting_can_be_read_can_be_written() -> None:
    decoder = json_decoder(Fields(keep=("x",)))
    limit = sys.getrecursionlimit()
    read = [
        item
        for depth in range(1, limit)
        if isinstance(
            item := decoder(record(f'{{"text":"","x":{"[" * depth}{"]" * depth}}}')), Event
        )
    ]
    assert read
    for event in read:
        encode(labelled(kept=event.kept))


@given(JSON_TEXT, JSON_TEXT, JSON_TEXT, JSON_TEXT)
def test_any_text_comes_out_as_one_line_of_utf8_json_that_reads_back_the_same(
    text: str, event_id: str, name: str, value: str
) -> None:
    kept = {} if name in OUTPUT_FIELDS else {name: json.dumps(value)}
    line = encode(labelled(text, event_id, kept), include_text=True)
    assert b"\n" not in line
    output = json.loads(line.decode("utf-8"))
    assert (output["text"], output["id"]) == (text, event_id)
    assert {name: json.dumps(output[name]) for name in kept} == kept


def test_only_halves_of_surrogate_pairs_are_escaped() -> None:
    line = encode(labelled("\ud83d é 😀 \ude00"), include_text=True)
    assert line.decode().endswith('"text":"\\ud83d é 😀 \\ude00"}')


def score_as_written(score: float) -> str:
    line = encode(labelled(scores={"joy": score}))
    return str(json.loads(line, parse_float=str)["scores"]["joy"])


def shorter_neighbours(written: str) -> list[decimal.Decimal]:
    """Return the decimals with one digit less that are just below and just above a decimal."""
    number = decimal.Decimal(written).normalize()
    digits = len(number.as_tuple().digits)
    if digits == 1:
        return []
    return [
        decimal.Context(digits - 1, rounding).create_decimal(number)
        for rounding in (decimal.ROUND_FLOOR, decimal.ROUND_CEILING)
    ]


def assert_shortest(score: float) -> None:
    written = score_as_written(score)
    assert np.float32(float(written)) == np.float32(score)
    assert all(
        np.float32(float(other)) != np.float32(score) for other in shorter_neighbours(written)
    )


@given(st.floats(0, 1, width=32))
def test_scores_are_the_shortest_decimals_that_read_back_as_the_same_float32(score: float) -> None:
    assert_shortest(score)


def test_scores_are_the_shortest_decimals_at_powers_of_two_and_beside_them() -> None:
    for exponent in range(150):
        power = np.float32(2.0**-exponent)
        for score in (power, np.nextafter(power, np.float32(0))):
            assert_shortest(float(score))


@pytest.mark.parametrize(
    ("score", "written"),
    [(0.0, "0.0"), (1.0, "1.0"), (0.1, "0.1"), (1 / 3, "0.33333334"), (1e-7, "1e-7")],
)
def test_scores_as_they_look(score: float, written: str) -> None:
    assert score_as_written(float(np.float32(score))) == written


def test_names_of_labels_are_written_whatever_is_in_them() -> None:
    scores = {"50%": 0.5, "%s %(a)d": 0.25, 'a"\\\0': 0.125}
    assert json.loads(encode(labelled(scores=scores)))["scores"] == scores


# Dead letters.


def dead_letter(value: bytes, place: FilePlace = PLACE) -> dict[str, Any]:
    line = encode_dead_letter(DeadLetter(Record(value, place), ErrorKind.NOT_JSON, "not JSON"))
    assert b"\n" not in line
    content = json.loads(line.decode("utf-8"))
    assert isinstance(content, dict)
    return content


def test_a_dead_letter_says_what_where_and_why() -> None:
    assert dead_letter(b'{"text": "caf\xc3\xa9') == {
        "source": "chat.jsonl",
        "line": 7,
        "kind": "not-json",
        "reason": "not JSON",
        "value": '{"text": "café',
    }


def test_a_dead_letter_of_a_part_of_a_line_says_which() -> None:
    assert dead_letter(b"a", FilePlace("chat.jsonl", 7, part=2))["part"] == 2
    assert "part" not in dead_letter(b"a")


def test_bytes_that_are_not_utf8_stand_in_base64() -> None:
    content = dead_letter(b"caf\xe9")
    assert content["value_base64"] == "Y2Fm6Q=="
    assert "value" not in content


@given(st.binary() | st.text().map(str.encode))
def test_the_original_bytes_can_always_be_restored(value: bytes) -> None:
    content = dead_letter(value)
    if "value" in content:
        assert content["value"].encode() == value
    else:
        assert base64.b64decode(content["value_base64"], validate=True) == value


def test_a_file_name_that_is_not_utf8_survives() -> None:
    name = b"caf\xe9.jsonl".decode("utf-8", "surrogateescape")
    assert dead_letter(b"a", FilePlace(name, 1))["source"] == name
