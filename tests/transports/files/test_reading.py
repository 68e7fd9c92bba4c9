"""Files: lines and rows of bounded length, four formats, gzip, and going on from any place."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import threading
import warnings
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.errors import ConfigurationError, WorkerError
from worker.events.decoding import Fields, split_row
from worker.events.records import Event, FilePlace, Record
from worker.transports.files import reading
from worker.transports.files.reading import (
    FilePosition,
    Format,
    InputFile,
    Line,
    LineReader,
    ends_inside_quotes,
    format_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BOM = b"\xef\xbb\xbf"
START = FilePosition()
RAW = st.lists(st.sampled_from([b"a", b"bcd", b"\n", b"\r\n", b'"', BOM, b"\xff"])).map(b"".join)
MARKLESS = RAW.map(lambda raw: raw.lstrip(BOM))
LIMIT = st.integers(1, 20)
CELL = st.text("ab,\"\n\r\t 'é")
TABLE = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(CELL, min_size=width, max_size=width), min_size=1, max_size=6)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inputs")


def read_lines(raw: bytes, limit: int, start: FilePosition = START) -> list[Line]:
    file = io.BytesIO(raw)
    file.seek(start.offset)
    return list(iter(LineReader(file, limit, start).next_line, None))


def open_input(
    path: Path | str, form: Format, limit: int = 2**20, start: FilePosition = START
) -> InputFile:
    return InputFile(str(path), form, Fields(), limit, start)


def rows_in(file: InputFile) -> Iterator[Line]:
    return filter(None, file.rows())


def read_rows(
    path: Path, form: Format, limit: int = 2**20, start: FilePosition = START
) -> list[Line]:
    file = open_input(path, form, limit, start)
    try:
        return list(rows_in(file))
    finally:
        file.close()


def rows_of(tmp_path: Path, content: bytes, form: Format, limit: int = 2**20) -> list[bytes]:
    path = tmp_path / "input"
    path.write_bytes(content)
    return [row.data for row in read_rows(path, form, limit)]


def texts_of(path: Path, form: Format) -> list[str | None]:
    """Return the texts of a file; None stands for a dead letter."""
    file = open_input(path, form)
    items = [file.decode(Record(row.data, FilePlace("input", row.number))) for row in rows_in(file)]
    file.close()
    return [item.text if isinstance(item, Event) else None for item in items]


def as_csv(table: list[list[str]]) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\r\n").writerows(table)
    return file.getvalue().encode()


# Lines.


@given(MARKLESS, LIMIT, st.integers(1, 9))
@example(b"abcdef", 3, 1)
@example(b"abc\n", 3, 9)
@example(b"abcd\n", 3, 2)
def test_lines_and_pieces_joined_with_newlines_are_the_file(
    raw: bytes, limit: int, read_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_READ_BYTES", read_bytes)
        lines = read_lines(raw, limit)
    joined = b"".join(line.data + (b"" if line.end.part else b"\n") for line in lines)
    assert joined == (raw if raw.endswith(b"\n") or not raw else raw + b"\n")


@given(MARKLESS, LIMIT)
def test_no_piece_is_longer_than_the_limit_and_only_longer_lines_come_in_pieces(
    raw: bytes, limit: int
) -> None:
    whole = raw.removesuffix(b"\n").split(b"\n") if raw else []
    pieces = [
        (number, part, line[cut : cut + limit])
        for number, line in enumerate(whole, 1)
        for part, cut in enumerate(
            range(0, max(len(line), 1), limit), 1 if len(line) > limit else 0
        )
    ]
    assert [(line.number, line.part, line.data) for line in read_lines(raw, limit)] == pieces


@given(RAW, LIMIT)
@example(BOM + b"ab\ncd", 1)
def test_reading_goes_on_from_the_end_of_any_line_or_piece(raw: bytes, limit: int) -> None:
    lines = read_lines(raw, limit)
    for index, line in enumerate(lines, 1):
        assert read_lines(raw, limit, line.end) == lines[index:]


@given(RAW, LIMIT)
def test_the_last_line_ends_where_the_file_ends(raw: bytes, limit: int) -> None:
    lines = read_lines(raw, limit)
    assert (lines[-1].end.offset if lines else 0) == len(raw)


def test_a_last_line_without_a_newline_is_a_line() -> None:
    assert [line.data for line in read_lines(b"a\n\nb", 10)] == [b"a", b"", b"b"]
    assert [line.data for line in read_lines(b"a\n\n", 10)] == [b"a", b""]
    assert read_lines(b"", 10) == []


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    lines = read_lines(BOM + b"a\n" + BOM + b"b\n", 10)
    assert [line.data for line in lines] == [b"a", BOM + b"b"]
    assert lines[0].end == FilePosition(offset=5, line=1)


def test_a_pipe_is_ready_only_when_it_can_be_read_without_waiting() -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as file:
        reader = LineReader(file, 10, START)
        assert not reader.ready(0)
        os.write(write_end, b"a\nb\n")
        assert reader.ready(0)
        assert reader.next_line() == Line(b"a", 1, 0, FilePosition(2, 1))
        assert reader.ready(0)
        assert reader.next_line() == Line(b"b", 2, 0, FilePosition(4, 2))
        assert not reader.ready(0)
        os.close(write_end)
        assert reader.ready(0)
        assert reader.next_line() is None


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_file_on_disk_is_always_ready(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"input.txt{suffix}"
    path.write_bytes(gzip.compress(b"a\n") if suffix else b"a\n")
    file = open_input(path, Format.TEXT)
    assert file.ready(0)
    assert len(list(rows_in(file))) == 1
    assert file.ready(0)
    file.close()


# Quotes.


def lines_of_a_row(raw: bytes) -> list[bytes]:
    """Join lines, as long as one ends inside quotes, without the ends of rows."""
    rows, row, inside = [], b"", False
    for line in raw.removesuffix(b"\n").split(b"\n"):
        inside = bool(ends_inside_quotes(line, inside=inside))
        row += line + (b"\n" if inside else b"")
        if not inside:
            rows.append(row.removesuffix(b"\r"))
            row = b""
    assert not inside
    return rows


@given(TABLE)
def test_rows_end_where_the_csv_module_ends_them(table: list[list[str]]) -> None:
    rows = lines_of_a_row(as_csv(table))
    assert [split_row(row, ",") for row in rows] == table
    assert list(csv.reader(io.StringIO(as_csv(table).decode(), newline=""), strict=True)) == table


@pytest.mark.parametrize(
    ("line", "starts_inside", "ends_inside"),
    [
        (b"", False, False),
        (b"", True, True),
        (b'a,"b', False, True),
        (b'a,"b"', False, False),
        (b'a,"b""', False, True),
        (b'a,b"c', False, False),
        (b'a, "b', False, False),
        (b'b",c', True, False),
        (b'b","c', True, True),
        (b'b""', True, True),
        (b'""', False, False),
        (b'"""', False, True),
        (b'"b"\r', False, False),
        (b'"b"c', False, None),
        (b'b"c,"d', True, None),
        (b"a\rb", False, None),
        (b'"a\rb",c\r', False, False),
        (b'b",c\rd,"e', True, None),
    ],
)
def test_a_field_is_quoted_only_if_it_starts_with_a_quote(
    line: bytes, *, starts_inside: bool, ends_inside: bool | None
) -> None:
    assert ends_inside_quotes(line, inside=starts_inside) is ends_inside


# Formats.


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.jsonl", Format.JSONL),
        ("a.ndjson", Format.JSONL),
        ("a.json", Format.JSONL),
        ("a.txt", Format.TEXT),
        ("a.csv", Format.CSV),
        ("a.tsv", Format.TSV),
        ("some.folder/a.b.CSV", Format.CSV),
        ("a.tsv.gz", Format.TSV),
        ("a.jsonl.gz", Format.JSONL),
    ],
)
def test_a_name_tells_the_format(name: str, form: Format) -> None:
    assert format_of(name) is form


@pytest.mark.parametrize("name", ["a", "a.gz", "a.xlsx", "csv", "a.csv/b", ".csv"])
def test_a_name_that_tells_no_format_is_an_error_that_says_how_to_tell(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"format of {name}; say --format jsonl\|text"):
        format_of(name)


def test_standard_input_has_no_name_that_tells_its_format() -> None:
    with pytest.raises(ConfigurationError, match="cannot tell the format of standard input"):
        format_of("-")


FILES = {
    Format.JSONL: b'{"text": "gg"}\n\n  \n{"text": "w\\np"}\r\n[1]\n',
    Format.TEXT: b"gg\r\nwp\n\nhf",
    Format.CSV: b'\xef\xbb\xbfid,text\r\n1,gg\r\n\r\n2,"w,\n""p"""\r\n3,hf,\n',
    Format.TSV: b'id\ttext\r\n1\tgg\r\n\r\n2\t"w, ""p\n3\n',
}
TEXTS = {
    Format.JSONL: ["gg", "w\np", None],
    Format.TEXT: ["gg", "wp", "", "hf"],
    Format.CSV: ["gg", 'w,\n"p"', None],
    Format.TSV: ["gg", '"w, ""p', None],
}


@pytest.mark.parametrize("form", Format)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_file_of_each_format_plain_or_gzipped(tmp_path: Path, form: Format, suffix: str) -> None:
    path = tmp_path / f"input.{form}{suffix}"
    path.write_bytes(gzip.compress(FILES[form]) if suffix else FILES[form])
    assert texts_of(path, form) == TEXTS[form]


@pytest.mark.parametrize("form", Format)
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("limit", [5, 2**20])
def test_a_file_goes_on_from_the_end_of_any_row(
    tmp_path: Path, form: Format, suffix: str, limit: int
) -> None:
    path = tmp_path / f"input.{form}{suffix}"
    path.write_bytes(gzip.compress(FILES[form]) if suffix else FILES[form])
    fields = Fields()
    # A header must be within the limit.
    limit = max(limit, 12) if form in {Format.CSV, Format.TSV} else limit
    file = InputFile(str(path), form, fields, limit, START)
    rows = list(rows_in(file))
    file.close()
    assert len(rows) > 2
    for index, row in enumerate(rows, 1):
        file = InputFile(str(path), form, fields, limit, row.end)
        assert list(rows_in(file)) == rows[index:]
        file.close()


@given(table=TABLE)
def test_a_csv_file_is_read_as_the_csv_module_reads_it(
    folder: Path, table: list[list[str]]
) -> None:
    path = folder / "table.csv"
    path.write_bytes(as_csv([["text", "n"], *([row[0], "1"] for row in table)]))
    assert texts_of(path, Format.CSV) == [row[0] for row in table]


@given(table=TABLE, limit=LIMIT)
def test_a_csv_file_goes_on_from_any_row_even_where_quotes_and_limit_cut_it_up(
    folder: Path, table: list[list[str]], limit: int
) -> None:
    path = folder / "cut.csv"
    path.write_bytes(b"text\n" + as_csv(table).replace(b'""', b'"'))
    rows = read_rows(path, Format.CSV, limit + 3)
    for index, row in enumerate(rows, 1):
        assert read_rows(path, Format.CSV, limit + 3, row.end) == rows[index:]


def test_blank_lines_are_no_records_except_in_plain_text(tmp_path: Path) -> None:
    content = b"text\n\n \r\n\r\na\n\n"
    assert rows_of(tmp_path, content, Format.JSONL) == [b"text", b"a"]
    assert rows_of(tmp_path, content, Format.CSV) == [b" ", b"a"]
    assert rows_of(tmp_path, content, Format.TSV) == [b" ", b"a"]
    assert rows_of(tmp_path, content, Format.TEXT) == [b"text", b"", b" ", b"", b"a", b""]


def test_a_row_is_named_by_the_line_it_starts_in(tmp_path: Path) -> None:
    path = tmp_path / "input.csv"
    path.write_bytes(b'id,text\n1,"a\n\nb"\n\n2,c\n')
    assert [(row.number, row.end.line) for row in read_rows(path, Format.CSV)] == [(2, 4), (6, 6)]


def test_line_ends_inside_quotes_stay_as_they_are(tmp_path: Path) -> None:
    content = b'id,text\r\n1,"a\r\n\r\nb"\r\n2,c\r\n'
    assert rows_of(tmp_path, content, Format.CSV) == [b'1,"a\r\n\r\nb"', b"2,c"]


def test_a_line_over_the_limit_comes_in_pieces_that_keep_all_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "input.jsonl"
    path.write_bytes(b"short\n0123\r56789\r\n \r\nend\r\n")
    rows = read_rows(path, Format.JSONL, limit=5)
    assert [(row.data, row.number, row.part) for row in rows] == [
        (b"short", 1, 0),
        (b"0123\r", 2, 1),
        (b"56789", 2, 2),
        (b"\r", 2, 3),
        (b"end", 4, 0),
    ]


def test_a_quote_that_never_closes_costs_one_row(tmp_path: Path) -> None:
    content = b'id,text\n1,"gg\n' + b"".join(b"%d,fine\n" % n for n in range(2, 50))
    rows = rows_of(tmp_path, content, Format.CSV)
    assert rows == [b'1,"gg', *(b"%d,fine" % n for n in range(2, 50))]


@pytest.mark.parametrize("last", [b"", b'x"y\n', b'x",y\n', b'x",a\ry\n'])
def test_a_chain_of_open_quotes_is_not_looked_at_again_from_each_of_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: bytes
) -> None:
    chain, looked_at = [b'a",b,"'] * 3000, []

    def ends(line: bytes, *, inside: bool) -> bool | None:
        looked_at.append(line)
        return ends_inside_quotes(line, inside=inside)

    monkeypatch.setattr(reading, "ends_inside_quotes", ends)
    rows = rows_of(tmp_path, b"text\n" + b"\n".join(chain) + b"\n" + last, Format.CSV)
    joined = b"\n".join([*chain[-999:], last.rstrip()])
    alone = [*chain, *([last.rstrip()] if last else [])]
    assert rows == (alone if last != b'x",y\n' else [*chain[:-999], joined])
    assert len(looked_at) <= 3 * len(chain)


def test_a_quote_that_closes_where_another_row_quotes_a_field_costs_one_row(tmp_path: Path) -> None:
    content = b'id,text\n1,"gg\n2,fine\n3,"well, played"\n4,fine\n'
    rows = rows_of(tmp_path, content, Format.CSV)
    assert rows == [b'1,"gg', b"2,fine", b'3,"well, played"', b"4,fine"]


def test_a_quote_that_closes_beyond_the_limit_costs_one_row(tmp_path: Path) -> None:
    content = b'id,text\n1,"gg\n2,fine\n3,also fine\n4,"so far"\n'
    rows = rows_of(tmp_path, content, Format.CSV, limit=20)
    assert rows == [b'1,"gg', b"2,fine", b"3,also fine", b'4,"so far"']


def test_a_quote_before_a_line_over_the_limit_costs_one_row(tmp_path: Path) -> None:
    content = b'id,text\n1,"gg\n2,fine\n' + b"9" * 30 + b'\n4,"so far"\n'
    rows = rows_of(tmp_path, content, Format.CSV, limit=20)
    assert rows == [b'1,"gg', b"2,fine", b"9" * 20, b"9" * 10, b'4,"so far"']


def test_no_more_is_read_ahead_for_a_closing_quote_than_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "input.csv"
    path.write_bytes(b'id,text\n1,"gg\n' + b"2,fine\n" * 200_000)
    file = open_input(path, Format.CSV, limit=1000)
    assert next(rows_in(file)).data == b'1,"gg'
    assert file.bytes_read() <= 2**16
    file.close()


@pytest.mark.parametrize("form", [Format.CSV, Format.TSV])
@pytest.mark.parametrize(
    "header", [b"", b"\n", b"id,body\tx\n", b"caf\xe9,text\ttext\n", b'"text\n']
)
def test_a_table_without_a_column_of_texts_is_an_error_that_says_so(
    tmp_path: Path, form: Format, header: bytes
) -> None:
    path = tmp_path / "input"
    path.write_bytes(header)
    with pytest.raises(ConfigurationError, match=f"the header of {path} has no column 'text'; "):
        open_input(path, form)


def test_a_table_that_is_refused_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "input.csv"
    path.write_bytes(b"id,body\n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ConfigurationError):
            open_input(path, Format.CSV)
    assert not caught


def test_a_column_of_texts_can_have_any_name(tmp_path: Path) -> None:
    path = tmp_path / "input.csv"
    path.write_bytes(b'"chat, message",id\ngg,1\n')
    file = InputFile(str(path), Format.CSV, Fields(text="chat, message"), 2**20, START)
    (row,) = rows_in(file)
    file.close()
    event = file.decode(Record(row.data, FilePlace("input", 2)))
    assert isinstance(event, Event)
    assert event.text == "gg"


# What cannot be read.


@pytest.mark.parametrize("form", Format)
def test_a_file_that_is_not_there_is_an_error_that_says_so(tmp_path: Path, form: Format) -> None:
    with pytest.raises(WorkerError, match=r"cannot read .*absent: No such file or directory; "):
        open_input(tmp_path / "absent", form)


def test_a_folder_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=f"cannot read {tmp_path}: Is a directory"):
        open_input(tmp_path, Format.TEXT)


@pytest.mark.parametrize("form", [Format.TEXT, Format.CSV])
def test_gzip_data_cut_off_anywhere_is_an_error_that_says_so(tmp_path: Path, form: Format) -> None:
    path = tmp_path / "input.gz"
    packed = gzip.compress(FILES[form], mtime=0)
    for length in range(1, len(packed)):
        path.write_bytes(packed[:length])
        with pytest.raises(WorkerError, match=rf"^cannot read {re.escape(str(path))}: its gzip"):
            read_rows(path, form)


@pytest.mark.parametrize("form", [Format.TEXT, Format.JSONL])
def test_a_changed_byte_of_gzip_data_is_an_error_that_says_so(tmp_path: Path, form: Format) -> None:
    path = tmp_path / "input.gz"
    packed = gzip.compress(FILES[form], mtime=0)
    header_without_check = 10
    for index in range(header_without_check, len(packed)):
        path.write_bytes(packed[:index] + bytes([packed[index] ^ 0x55]) + packed[index + 1 :])
        with pytest.raises(WorkerError, match=rf"^cannot read {re.escape(str(path))}: its gzip"):
            read_rows(path, form)


def test_what_is_no_gzip_data_is_an_error_that_says_so(tmp_path: Path) -> None:
    path = tmp_path / "input.txt.gz"
    path.write_bytes(b"gg\nwp\n")
    with pytest.raises(WorkerError, match="its gzip data is damaged or cut off"):
        read_rows(path, Format.TEXT)


def test_damage_in_the_middle_of_gzip_data_leaves_the_rows_before_it(tmp_path: Path) -> None:
    path = tmp_path / "input.txt.gz"
    path.write_bytes(gzip.compress(b"gg\n" * 50_000)[:-8])
    file = open_input(path, Format.TEXT)
    rows = rows_in(file)
    assert next(rows).data == b"gg"
    with pytest.raises(WorkerError):
        list(rows)
    file.close()


@pytest.mark.parametrize("form", [Format.TEXT, Format.JSONL])
def test_packed_data_that_expand_without_end_are_an_error(tmp_path: Path, form: Format) -> None:
    path = tmp_path / "input.gz"
    path.write_bytes(gzip.compress(b"\n" * 2**21))
    with pytest.raises(WorkerError, match=r"unpacks to more than 100 times its size.*gunzip"):
        read_rows(path, form)


@pytest.mark.parametrize("rest", [b"\0" * 2**21, gzip.compress(b"", mtime=0) * 2**17])
def test_packed_data_that_unpack_to_nothing_are_an_error(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / "input.gz"
    path.write_bytes(gzip.compress(b"gg\n") + rest)
    with pytest.raises(WorkerError, match="has long stretches that unpack to nothing"):
        read_rows(path, Format.TEXT)


def test_a_little_padding_is_none_of_it(tmp_path: Path) -> None:
    path = tmp_path / "input.gz"
    path.write_bytes(gzip.compress(b"gg\n") + b"\0" * 10_000 + gzip.compress(b"wp\n"))
    assert [row.data for row in read_rows(path, Format.TEXT)] == [b"gg", b"wp"]


def test_a_named_pipe_may_be_packed(tmp_path: Path) -> None:
    path = tmp_path / "input.gz"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=[gzip.compress(b"gg\nwp\n")])
    writer.start()
    assert [row.data for row in read_rows(path, Format.TEXT)] == [b"gg", b"wp"]
    writer.join()


def test_packed_data_may_expand_as_far_as_messages_do(tmp_path: Path) -> None:
    path = tmp_path / "input.gz"
    lines = [json.dumps({"id": f"{number:08}", "text": "gg"}) for number in range(50_000)]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    assert len(read_rows(path, Format.JSONL)) == len(lines)


def test_a_file_of_blank_lines_can_be_left(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"\n" * 100_000 + b'{"text": "gg"}\n')
    file = open_input(path, Format.JSONL)
    rows = file.rows()
    assert [next(rows) for _ in range(10)] == [None] * 10
    assert [row.number for row in filter(None, rows)] == [100_001]
    file.close()


# How far it has read.


def test_bytes_read_are_those_of_the_packed_file(tmp_path: Path) -> None:
    path = tmp_path / "input.txt.gz"
    path.write_bytes(gzip.compress(b"gg\n" * 50_000))
    file = open_input(path, Format.TEXT)
    assert len(list(rows_in(file))) == 50_000
    assert file.bytes_read() == path.stat().st_size
    file.close()


def test_standard_input_is_read_as_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"gg\nwp\n")))
    file = open_input("-", Format.TEXT)
    assert [row.data for row in rows_in(file)] == [b"gg", b"wp"]
    file.close()


def test_how_far_a_pipe_was_read_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"gg\nwp\n")
    os.close(write_end)
    with os.fdopen(read_end) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        file = open_input("-", Format.TEXT)
        assert len(list(rows_in(file))) == 2
        assert file.bytes_read() == 0
