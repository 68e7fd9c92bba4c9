"""Labelled texts: three forms of files, and errors that name the file and the line."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import ExampleFileError
from worker.evaluation.examples import Example, ExampleFormat, read_examples

if TYPE_CHECKING:
    from pathlib import Path

FORM = ExampleFormat()
# Anything that UTF-8 can hold.
TEXTS = st.text()
LABELS = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=8)
ROWS = st.lists(st.tuples(TEXTS, st.sets(LABELS, max_size=3)), min_size=1, max_size=8)


def write(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8", newline="")
    return path


def pairs(path: Path, form: ExampleFormat = FORM) -> list[tuple[str, set[str]]]:
    return [(example.text, set(example.labels)) for example in read_examples(path, form)]


@pytest.fixture
def numbered(tmp_path: Path) -> ExampleFormat:
    """Return the form of files that give labels by number."""
    return ExampleFormat(label_names=write(tmp_path, "names.txt", "calm\ncross\nglad\n"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("labelled")


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "json", "JSONL", "Json"])
def test_json_lines_have_a_list_of_labels_or_a_label(tmp_path: Path, suffix: str) -> None:
    content = (
        '{"text": "we won", "labels": ["glad", "calm"]}\n'
        '{"id": 7, "labels": "cross", "text": "not again"}\n'
        '{"text": "ok", "labels": []}\n'
    )
    assert pairs(write(tmp_path, f"texts.{suffix}", content)) == [
        ("we won", {"glad", "calm"}),
        ("not again", {"cross"}),
        ("ok", set()),
    ]


def test_csv_has_a_header_quotes_and_labels_between_commas(tmp_path: Path) -> None:
    content = 'id,text,labels\n1,"we won, finally","glad, calm"\n2,"so\nlong",cross\n3,ok,\n'
    assert pairs(write(tmp_path, "texts.csv", content)) == [
        ("we won, finally", {"glad", "calm"}),
        ("so\nlong", {"cross"}),
        ("ok", set()),
    ]


@pytest.mark.parametrize(("name", "separator"), [("TRAIN.CSV", ","), ("TRAIN.TSV", "\t")])
def test_a_suffix_may_be_in_upper_case(tmp_path: Path, name: str, separator: str) -> None:
    path = write(tmp_path, name, f"text{separator}labels\nwe won{separator}glad\n")
    assert pairs(path) == [("we won", {"glad"})]


def test_tsv_has_a_header_and_no_quotes(tmp_path: Path) -> None:
    content = 'text\tlabels\n"we" won\tglad,calm\n"not again\tcross\n'
    assert pairs(write(tmp_path, "texts.tsv", content)) == [
        ('"we" won', {"glad", "calm"}),
        ('"not again', {"cross"}),
    ]


def test_with_label_names_lines_are_text_tab_numbers_whatever_the_file_is_called(
    tmp_path: Path, numbered: ExampleFormat
) -> None:
    content = 'we "won"\t2,0\tid-1\nnot again\t1\n'
    assert pairs(write(tmp_path, "texts.data", content), numbered) == [
        ('we "won"', {"glad", "calm"}),
        ("not again", {"cross"}),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("texts.jsonl", '{"message": "we won", "mood": "glad"}\n'),
        ("texts.csv", "mood,message\nglad,we won\n"),
        ("texts.tsv", "mood\tmessage\nglad\twe won\n"),
    ],
)
def test_the_fields_can_be_named(tmp_path: Path, name: str, content: str) -> None:
    form = ExampleFormat(text_field="message", label_field="mood")
    assert pairs(write(tmp_path, name, content), form) == [("we won", {"glad"})]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_end_as_on_any_system(tmp_path: Path, numbered: ExampleFormat, end: str) -> None:
    jsonl = write(tmp_path, "texts.jsonl", f'{{"text": "we", "labels": "glad"}}{end}')
    tsv = write(tmp_path, "texts.tsv", f"text\tlabels{end}we\tglad{end}")
    numbers = write(tmp_path, "numbers.tsv", f"we\t2{end}")
    assert pairs(jsonl) == pairs(tsv) == pairs(numbers, numbered) == [("we", {"glad"})]


def test_the_last_line_needs_no_end(tmp_path: Path) -> None:
    path = write(tmp_path, "texts.jsonl", '{"text": "we", "labels": "glad"}')
    assert read_examples(path, FORM) == [Example("we", frozenset({"glad"}))]


@given(rows=ROWS)
def test_json_lines_give_back_any_text(folder: Path, rows: list[tuple[str, set[str]]]) -> None:
    lines = [json.dumps({"text": text, "labels": sorted(labels)}) + "\n" for text, labels in rows]
    assert pairs(write(folder, "texts.jsonl", "".join(lines))) == rows


@given(rows=ROWS)
def test_csv_gives_back_any_text(folder: Path, rows: list[tuple[str, set[str]]]) -> None:
    path = folder / "texts.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["text", "labels"])
        writer.writerows([text, ",".join(labels)] for text, labels in rows)
    assert pairs(path) == rows


@pytest.mark.parametrize(
    "line",
    [
        "",
        "we won",
        '{"text": "we won"}',
        '{"labels": ["glad"]}',
        '{"text": null, "labels": ["glad"]}',
        '{"text": 7, "labels": ["glad"]}',
        '{"text": "we won", "labels": null}',
        '{"text": "we won", "labels": [2]}',
        '{"text": "we won", "labels": {"glad": 1}}',
        '{"text": "we won", "labels": ["glad"]',
        '[{"text": "we won", "labels": ["glad"]}]',
        '"we won"',
        "null",
        "[1]",
        pytest.param("[" * 100_000, id="nested too deep"),
    ],
)
def test_a_bad_json_line_is_reported_by_its_number(tmp_path: Path, line: str) -> None:
    good = '{"text": "ok", "labels": ["calm"]}'
    path = write(tmp_path, "texts.jsonl", f"{good}\n{good}\n{line}\n{good}\n")
    with pytest.raises(ExampleFileError) as error:
        read_examples(path, FORM)
    assert str(error.value) == (
        f"{path}, line 3 is not as expected: a text in 'text' and its labels in 'labels'"
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("texts.csv", "text,mood\nok,calm\nwe won,glad\n"),
        ("texts.csv", "message,labels\nok,calm\n"),
        ("texts.tsv", "text,labels\nok,calm\n"),
        ("texts.csv", "text,labels\nok\n"),
    ],
)
def test_a_table_that_lacks_a_field_is_reported_by_its_first_row(
    tmp_path: Path, name: str, content: str
) -> None:
    with pytest.raises(ExampleFileError, match=r", line 2 is not as expected: a text in 'text'"):
        read_examples(write(tmp_path, name, content), FORM)


def test_rows_are_counted_in_lines_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "texts.csv", 'text,labels\n"a\nb\nc",calm\nd\n')
    with pytest.raises(ExampleFileError, match=r"texts\.csv, line 5 is not as expected"):
        read_examples(path, FORM)


@pytest.mark.parametrize(
    "line", ["we won", "we won\t", "we won\t3", "we won\t-1", "we won\tglad", ""]
)
def test_a_line_without_numbers_of_known_labels_is_reported(
    tmp_path: Path, numbered: ExampleFormat, line: str
) -> None:
    path = write(tmp_path, "texts.tsv", f"ok\t0\n{line}\n")
    with pytest.raises(ExampleFileError) as error:
        read_examples(path, numbered)
    assert str(error.value) == (
        f"{path}, line 2 is not as expected: text, tab, numbers of labels in names.txt"
    )


def test_errors_do_not_repeat_what_the_file_says(tmp_path: Path) -> None:
    path = write(tmp_path, "texts.jsonl", '{"text": "a secret", "labels": 1}\n')
    with pytest.raises(ExampleFileError) as error:
        read_examples(path, FORM)
    assert "secret" not in str(error.value)
    assert error.value.__cause__ is None


@pytest.mark.parametrize("good_lines", [0, 1, 5000])
def test_a_text_that_is_no_utf8_is_reported_by_its_line(tmp_path: Path, good_lines: int) -> None:
    path = tmp_path / "texts.tsv"
    path.write_bytes(b"text\tlabels\n" + good_lines * b"ok\tcalm\n" + b"na\xefve\tcalm\n")
    with pytest.raises(ExampleFileError) as error:
        read_examples(path, FORM)
    assert f"texts.tsv, line {good_lines + 2} is not as expected" in str(error.value)


def test_a_text_with_half_a_surrogate_pair_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path, "texts.jsonl", '{"text": "we \\ud83d", "labels": "glad"}\n')
    with pytest.raises(ExampleFileError, match="line 1 is not as expected"):
        read_examples(path, FORM)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("texts.tsv", b"text\tlabels\nok\tna\xefve\n"),
        ("texts.jsonl", b'{"text": "ok", "labels": ["na\xefve"]}\n'),
        ("texts.jsonl", b'{"text": "ok", "labels": ["\\ud83d"]}\n'),
    ],
)
def test_a_label_that_is_no_unicode_is_reported(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ExampleFileError, match=r", line \d is not as expected"):
        read_examples(path, FORM)


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", ""), ("a.csv", "text,labels\n")])
def test_a_file_without_texts_is_reported(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(ExampleFileError, match="holds no labelled text"):
        read_examples(write(tmp_path, name, content), FORM)


@pytest.mark.parametrize("name", ["texts", "texts.txt", "texts.parquet"])
def test_a_name_that_tells_no_form_is_reported(tmp_path: Path, name: str) -> None:
    with pytest.raises(ExampleFileError, match=r"name it \.jsonl, \.csv or \.tsv"):
        read_examples(write(tmp_path, name, "we won\n"), FORM)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ExampleFileError, match="No such file or directory; check the path"):
        read_examples(tmp_path / "missing.jsonl", FORM)


def test_a_missing_file_of_names_is_reported(tmp_path: Path) -> None:
    texts = write(tmp_path, "texts.tsv", "ok\t0\n")
    with pytest.raises(ExampleFileError, match="cannot read the label names"):
        read_examples(texts, ExampleFormat(label_names=tmp_path / "missing.txt"))


@pytest.mark.parametrize("content", ["", "\n", "calm\nglad\ncalm\n"])
def test_names_must_be_there_and_distinct(tmp_path: Path, content: str) -> None:
    names = write(tmp_path, "names.txt", content)
    texts = write(tmp_path, "texts.tsv", "ok\t0\n")
    with pytest.raises(ExampleFileError, match="must hold distinct label names, one a line"):
        read_examples(texts, ExampleFormat(label_names=names))


def test_a_name_is_a_line(tmp_path: Path) -> None:
    names = write(tmp_path, "names.txt", "very calm\ncross\n")
    texts = write(tmp_path, "texts.tsv", "ok\t0\n")
    assert pairs(texts, ExampleFormat(label_names=names)) == [("ok", {"very calm"})]
