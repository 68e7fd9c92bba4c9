"""`worker dead-letters` on the files of `worker replay`, and how it reads records of Kafka."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.consumer.fetcher import ConsumerRecord

from worker.cli.entry import main
from worker.dead_letters.letters import Filters, Letter, moment
from worker.dead_letters.receipts import Ledger, Receipt, stretches
from worker.dead_letters.topic import is_receipt, letter_of
from worker.events.encoding import LabelEncoder, encode_dead_letter
from worker.events.records import DeadLetter, ErrorKind, FilePlace, Record, TopicPlace
from worker.transports.kafka.records import ProducerRecordEncoder, record_of

if TYPE_CHECKING:
    from pathlib import Path

PRIVATE = "meet me at the old mill"
NOON = datetime(2025, 1, 31, 12, tzinfo=UTC)


class Terminal(io.StringIO):
    """Standard input that a person types on."""

    def isatty(self) -> bool:
        return True


def line_of(
    value: bytes, line: int, kind: ErrorKind = ErrorKind.NOT_JSON, part: int = 0, source: str = "c"
) -> bytes:
    record = Record(value, FilePlace(source, line, part))
    return encode_dead_letter(DeadLetter(record, kind, "the record is not valid JSON")) + b"\n"


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    path = tmp_path / "out.dead.jsonl"
    path.write_bytes(
        line_of(PRIVATE.encode(), 3)
        + line_of(b"\xff", 5, ErrorKind.NOT_UTF8)
        + line_of(b"[]", 9, source="d")
    )
    return path


def record_of_kafka(
    headers: list[tuple[str, bytes | None]],
    value: bytes | None = b"{",
    key: bytes | None = b"key",
    timestamp: int = 0,
    offset: int = 7,
) -> ConsumerRecord:
    return ConsumerRecord(
        "dead", 1, -1, offset, timestamp, 0, key, value, headers, None, -1, -1, -1
    )


# Files.


def test_letters_of_files_are_counted_by_kind_and_source(
    letters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dead-letters", "list", str(letters)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "kind      from  partition  letters  first  last",
        "not-json  c     -          1        -      -",
        "not-json  d     -          1        -      -",
        "not-utf8  c     -          1        -      -",
        "",
        "3 dead letters",
    ]


def test_only_chosen_letters_are_counted(letters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dead-letters", "list", str(letters), "--topic", "c"]) == 0
    assert capsys.readouterr().out.endswith("\n\n2 dead letters\n")


def test_no_letters_are_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").touch()
    assert main(["dead-letters", "list", str(tmp_path / "empty")]) == 0
    assert capsys.readouterr().out == "0 dead letters\n"


@pytest.mark.parametrize(
    ("flags", "lines"),
    [
        ("", [3, 5, 9]),
        ("--kind not-json", [3, 9]),
        ("--kind not-json --kind not-utf8", [3, 5, 9]),
        ("--topic c", [3, 5]),
        ("--topic c --kind not-json", [3]),
        ("--offset 5", [5]),
        ("--offset 4", []),
        ("--limit 2", [3, 5]),
    ],
)
def test_filters_choose_letters_for_which_all_of_them_hold(
    letters: Path, capsys: pytest.CaptureFixture[str], flags: str, lines: list[int]
) -> None:
    assert main(["dead-letters", "show", str(letters), *flags.split()]) == 0
    shown = [line.partition(" ")[0] for line in capsys.readouterr().out.splitlines()]
    assert [int(place.partition(":")[2]) for place in shown if ":" in place] == lines


def test_show_prints_of_a_letter_what_is_not_private(
    letters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dead-letters", "show", str(letters), "--limit", "1"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "c:3  not-json  -  0 rounds  key null, value 23 B, 0 headers  the record is not valid JSON",
        "there are more than 1 dead letters; raise --limit to see them",
    ]


@pytest.mark.parametrize("command", ["list", "show", "redrive -o again", "show --limit 1"])
def test_no_payload_is_shown_unasked(
    letters: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["dead-letters", *command.split(), str(letters)]) == 0
    output = capsys.readouterr()
    assert PRIVATE not in output.out + output.err


def test_a_payload_is_shown_on_request_as_json(
    letters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dead-letters", "show", str(letters), "--payload"]) == 0
    payloads = [json.loads(line) for line in capsys.readouterr().out.splitlines()[1::2]]
    assert payloads == [
        {"key": None, "headers": [], "value": PRIVATE},
        {"key": None, "headers": [], "value": {"base64": "/w=="}},
        {"key": None, "headers": [], "value": "[]"},
    ]


def test_a_payload_controls_no_terminal_and_keeps_its_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "\x1b[31mred \x7f \u202eturned\u2028 👩\u200d💻 ünï\x85"
    path = tmp_path / "letters"
    path.write_bytes(line_of(text.encode(), 1, source="a\x1bb"))
    assert main(["dead-letters", "show", str(path), "--payload"]) == 0
    place, payload = capsys.readouterr().out.splitlines()
    assert place.startswith("a\\u001bb:1 ")
    assert json.loads(payload)["value"] == text
    assert "👩\u200d💻 ünï" in payload
    assert not set("\x1b\x7f\u202e\u2028\x85") & set(payload)


def test_a_terminal_that_is_not_utf8_shows_what_it_can(tmp_path: Path) -> None:
    path = tmp_path / "letters"
    path.write_bytes(line_of("ü 👩".encode(), 1))
    shown = subprocess.run(
        [sys.executable, "-m", "worker", "dead-letters", "show", str(path), "--payload"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert b'"value": "\\xfc \\U0001f469"' in shown.stdout


@pytest.mark.parametrize(
    "content",
    [
        PRIVATE.encode(),
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"source":1,"line":1,"kind":"k","reason":"r","value":""}',
        b'{"source":"s","line":"1","kind":"k","reason":"r","value":""}',
        b'{"source":"s","line":true,"kind":"k","reason":"r","value":""}',
        b'{"source":"s","line":1,"part":true,"kind":"k","reason":"r","value":""}',
        b'{"topic":"t","partition":0,"offset":false,"kind":"k","reason":"r","value":""}',
        b'{"source":"s","line":1,"kind":"k","reason":"r","value":1}',
        b'{"source":"s","line":1,"kind":"k","reason":"r","value_base64":"!"}',
        b'{"source":"s","line":1,"kind":"k","reason":"r","value":"\\ud800"}',
        b'{"source":"s","line":1,"kind":"k","value":""}',
    ],
)
def test_what_is_no_dead_letter_is_reported_by_its_place_alone(
    letters: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    letters.write_bytes(line_of(b"x", 1) + content + b"\n")
    assert main(["dead-letters", "list", str(letters)]) == 1
    assert capsys.readouterr().err == (
        f"worker: {letters}, line 2 is no dead letter; name a file that `worker replay` wrote\n"
    )


def test_letters_of_other_transports_are_read_from_files_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "letters"
    letter = DeadLetter(
        Record(b"{", TopicPlace("chat", 1, 7)), ErrorKind.ENGINE, "the engine failed"
    )
    path.write_bytes(encode_dead_letter(letter))
    assert main(["dead-letters", "show", str(path)]) == 0
    assert capsys.readouterr().out.startswith("chat-1-7  engine  ")


def test_a_file_that_is_missing_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dead-letters", "list", str(tmp_path / "none")]) == 1
    assert "cannot read" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--partition=1", "--since=2025-01-01", "--until=2025-01-01"])
def test_files_have_no_partitions_and_no_times(
    letters: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    assert main(["dead-letters", "list", str(letters), flag]) == 2
    assert "have no partition and no time" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    ["show --limit 0", "show --limit many", "redrive --max-rounds 0", "list --kind wrong", "skip"],
)
def test_wrong_usage_is_refused(arguments: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(["dead-letters", *arguments.split()])
    assert end.value.code == 2


def test_a_time_that_is_none_is_refused(letters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dead-letters", "list", str(letters), "--since", "yesterday"]) == 2
    assert "--since and --until must be times such as" in capsys.readouterr().err


# Files, redriven.


def test_lines_that_could_not_be_labelled_come_back_as_they_were(tmp_path: Path) -> None:
    bad = [b"{", b"\xff\xfe", b'{"text": 1}', b"[1]", b'"' + b"y" * 50]
    chat = tmp_path / "chat.jsonl"
    chat.write_bytes(b'{"text": "hello"}\n' + b"\n".join(bad))
    output, again = tmp_path / "labels.jsonl", tmp_path / "again.jsonl"
    replay = ["replay", str(chat), "-o", str(output), "--max-bytes", "20", "--no-cache"]
    assert main([*replay, "--log-level", "error"]) == 3
    letters = f"{output}.dead.jsonl"
    assert main(["dead-letters", "redrive", letters, "-o", str(again), "--yes"]) == 0
    assert again.read_bytes().splitlines() == bad


def test_without_consent_nothing_is_written(
    letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    assert main(["dead-letters", "redrive", str(letters), "-o", str(again)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"3 lines to write to {again}",
        "nothing was done; to do it, run the same command with --yes",
    ]
    assert list(tmp_path.iterdir()) == [letters]


@pytest.mark.parametrize(("answer", "done"), [("y\n", True), ("n\n", False), ("", False)])
def test_on_a_terminal_it_asks(
    letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, *, done: bool
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    again = tmp_path / "again"
    assert main(["dead-letters", "redrive", str(letters), "-o", str(again)]) == 0
    assert again.exists() == done


def test_only_chosen_lines_are_written(letters: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    flags = ["-o", str(again), "--yes", "--topic", "c"]
    assert main(["dead-letters", "redrive", str(letters), *flags]) == 0
    assert again.read_bytes() == PRIVATE.encode() + b"\n\xff\n"


def test_where_nothing_is_chosen_nothing_is_written(
    letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["-o", str(tmp_path / "again"), "--yes", "--kind", "engine"]
    assert main(["dead-letters", "redrive", str(letters), *flags]) == 0
    assert capsys.readouterr().out == "there is nothing to send back\n"
    assert list(tmp_path.iterdir()) == [letters]


def test_a_file_is_written_a_second_time_only_on_request(
    letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    command = ["dead-letters", "redrive", str(letters), "-o", str(again), "--yes"]
    assert main(command) == 0
    before = again.read_bytes()
    again.write_bytes(b"other")
    assert main(command) == 2
    assert "exists; name another file, or write it anew with --again" in capsys.readouterr().err
    assert again.read_bytes() == b"other"
    assert main([*command, "--again"]) == 0
    assert again.read_bytes() == before


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_the_file_has_the_rights_that_the_umask_leaves(
    letters: Path, tmp_path: Path, umask: int, mode: int
) -> None:
    again = tmp_path / "again"
    before = os.umask(umask)
    try:
        assert main(["dead-letters", "redrive", str(letters), "-o", str(again), "--yes"]) == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(again.stat().st_mode) == mode


def test_the_file_and_then_its_name_are_on_disk_when_the_command_ends(
    letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = tmp_path / "again"
    synced: list[tuple[int, bool]] = []

    def fsync(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, again.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    assert main(["dead-letters", "redrive", str(letters), "-o", str(again), "--yes"]) == 0
    assert synced == [(again.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


def test_the_letters_themselves_are_never_written_over(letters: Path) -> None:
    before = letters.read_bytes()
    flags = ["-o", str(letters), "--yes", "--again"]
    assert main(["dead-letters", "redrive", str(letters), *flags]) == 2
    assert letters.read_bytes() == before


def test_only_the_output_is_written(letters: Path, tmp_path: Path) -> None:
    near = letters.rename(tmp_path / "again.new")
    before = near.read_bytes()
    flags = ["-o", str(tmp_path / "again"), "--yes"]
    assert main(["dead-letters", "redrive", str(near), *flags]) == 0
    assert near.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"again", "again.new"}
    missing = tmp_path / "none"
    assert main(["dead-letters", "redrive", str(missing), *flags, "--again"]) == 1


def test_the_pieces_of_a_long_line_come_together(tmp_path: Path) -> None:
    letters, again = tmp_path / "letters", tmp_path / "again"
    pieces = [line_of(b"ab"[n:] * 2, 4, ErrorKind.TOO_LARGE, n + 1) for n in range(2)]
    letters.write_bytes(line_of(b"x", 1) + b"".join(pieces) + line_of(b"y", 5))
    assert main(["dead-letters", "redrive", str(letters), "-o", str(again), "--yes"]) == 0
    assert again.read_bytes() == b"x\nababbb\ny\n"


def test_a_line_that_lacks_a_piece_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    letters, again = tmp_path / "letters", tmp_path / "again"
    letters.write_bytes(line_of(b"x", 4, part=1) + line_of(b"y", 4, part=3))
    assert main(["dead-letters", "redrive", str(letters), "-o", str(again), "--yes"]) == 1
    assert "piece 2 of line 4 of c is missing" in capsys.readouterr().err
    assert not again.exists()


def test_an_output_that_cannot_be_written_is_reported(
    letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "none" / "again"
    assert main(["dead-letters", "redrive", str(letters), "-o", str(again), "--yes"]) == 1
    assert f"cannot write {again}" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["letters"], ["-o", "again"]])
def test_files_go_to_a_file_and_nothing_else_does(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(["dead-letters", "redrive", *arguments]) == 2
    assert "FILE and -o need each other" in capsys.readouterr().err


# Records of Kafka.

HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["a", "worker-topic", "worker-nulls", "worker-rounds", "worker-kind"])
        | st.text(st.characters(exclude_categories=["Cs"])),
        st.none() | st.binary(),
    )
)


@given(value=st.none() | st.binary(), key=st.none() | st.binary(), headers=HEADERS)
def test_a_letter_holds_the_record_as_it_was(
    value: bytes | None, key: bytes | None, headers: list[tuple[str, bytes | None]]
) -> None:
    encoder = ProducerRecordEncoder(
        LabelEncoder("model", "digest"), "labels", "dead", "group", max_bytes=2**20
    )
    source = record_of_kafka(headers, value, key)
    reason = "the record is not valid JSON"
    dead = DeadLetter(record_of(source), ErrorKind.NOT_JSON, reason)
    message = encoder.encode(source, dead)
    letter = letter_of(record_of_kafka(list(message.headers), message.value, message.key))
    assert letter is not None
    assert (letter.value, letter.key, list(letter.headers)) == (value, key, headers)
    assert (letter.kind, letter.reason) == ("not-json", reason)
    assert letter.place == TopicPlace("dead", 1, 7)
    assert (letter.source, letter.partition, letter.offset) == ("dead", 1, 7)


OURS: list[tuple[str, bytes | None]] = [
    ("worker-topic", b"chat"),
    ("worker-partition", b"0"),
    ("worker-offset", b"5"),
    ("worker-kind", b"engine"),
    ("worker-reason", b"the engine failed"),
]


@pytest.mark.parametrize(
    ("header", "rounds"), [(b"2", 2), (b"", 0), (b"-1", 0), (b"many", 0), (None, 0), (b"\xff", 0)]
)
def test_rounds_are_those_of_the_record(header: bytes | None, rounds: int) -> None:
    letter = letter_of(record_of_kafka([("worker-rounds", header), *OURS]))
    assert letter is not None
    assert letter.rounds == rounds


@pytest.mark.parametrize(
    "headers",
    [
        [],
        OURS[:1],
        OURS[1:],
        [*OURS[:1], ("worker-partition", b"x"), *OURS[2:]],
        [*OURS, ("worker-nulls", b"1")],
        [*OURS, ("worker-nulls", b"{")],
    ],
)
def test_a_record_of_someone_else_is_no_letter(headers: list[tuple[str, bytes | None]]) -> None:
    assert letter_of(record_of_kafka(headers)) is None


def test_a_receipt_is_no_letter_and_a_letter_no_receipt() -> None:
    header = ("worker-redrive", b"1")
    assert is_receipt(record_of_kafka([header]))
    assert letter_of(record_of_kafka([header])) is None
    # An event may have any headers.
    assert not is_receipt(record_of_kafka([header, *OURS]))


def test_a_time_beyond_the_calendar_is_none() -> None:
    letter = letter_of(record_of_kafka(OURS, timestamp=2**62))
    assert letter is not None
    assert letter.time is None


# Filters.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2025-01-31T12:00:00Z", NOON),
        ("2025-01-31T12:00", NOON),
        ("2025-01-31T13:00+01:00", NOON),
        ("2025-01-31", NOON - timedelta(hours=12)),
        (None, None),
    ],
)
def test_a_time_without_an_offset_is_utc(text: str | None, expected: datetime | None) -> None:
    assert moment(text) == expected


def test_a_span_of_time_begins_with_its_first_moment_and_ends_before_its_last() -> None:
    letters = [
        Letter(TopicPlace("t", 0, n), "engine", "", b"", time=NOON + timedelta(minutes=n))
        for n in range(4)
    ]
    span = Filters(since=NOON + timedelta(minutes=1), until=NOON + timedelta(minutes=3))
    assert [letter.offset for letter in letters if span.take(letter)] == [1, 2]
    timeless = Letter(TopicPlace("t", 0, 0), "engine", "", b"")
    assert not any(f.take(timeless) for f in (Filters(since=NOON), Filters(until=NOON)))


def test_the_same_selection_reads_the_same_however_it_is_written() -> None:
    elsewhere = timezone(timedelta(hours=1))
    one = Filters(("engine", "deadly", "engine"), since=NOON)
    other = Filters(("deadly", "engine"), since=NOON.astimezone(elsewhere))
    assert (
        one.as_json()
        == other.as_json()
        == {
            "kinds": ["deadly", "engine"],
            "since": "2025-01-31T12:00:00+00:00",
        }
    )
    assert Filters(partition=0, offset=0).as_json() == {"partition": 0, "offset": 0}


# Receipts.


@given(st.sets(st.integers(0, 50)))
def test_stretches_hold_the_offsets_and_are_few(offsets: set[int]) -> None:
    found = stretches(sorted(offsets))
    assert [o for first, last in found for o in range(first, last + 1)] == sorted(offsets)
    assert all(before[1] + 1 < after[0] for before, after in pairwise(found))


def receipt(selection: dict[str, object], number: int, sent: list[tuple[int, int]]) -> bytes:
    return (
        Receipt(selection=selection, number=number, until={1: 9}, sent=sent)
        .model_dump_json()
        .encode()
    )


def test_a_ledger_keeps_redrives_apart() -> None:
    ledger = Ledger()
    assert ledger.last_number({"a": 1}) == 0
    assert not ledger.has_been_sent((1, 0))
    ledger.add(record_of_kafka([], receipt({"a": 1}, 1, [(0, 1), (4, 4)])))
    ledger.add(record_of_kafka([], receipt({"a": 1}, 2, [(0, 0)])))
    ledger.add(record_of_kafka([], receipt({"b": 1}, 1, [(6, 6)])))
    assert (ledger.last_number({"a": 1}), ledger.last_number({"b": 1})) == (2, 1)
    places = [(partition, offset) for partition in (0, 1) for offset in range(9)]
    assert [p for p in places if ledger.has_sent({"a": 1}, 1, p)] == [(1, 0), (1, 1), (1, 4)]
    assert not any(ledger.has_sent({"a": 1}, 3, place) for place in places)
    assert [p for p in places if ledger.has_been_sent(p)] == [(1, 0), (1, 1), (1, 4), (1, 6)]
    assert (ledger.until({"b": 1}, 1), ledger.until({"c": 1}, 1)) == ({1: 9}, {})


@given(runs=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), max_size=20))
def test_a_ledger_knows_the_offsets_of_all_runs_in_whatever_order(
    runs: list[tuple[int, int]],
) -> None:
    ledger = Ledger()
    for first, more in runs:
        ledger.add(record_of_kafka([], receipt({}, 1, [(first, first + more)]), offset=100))
    sent = {first + n for first, more in runs for n in range(more + 1)}
    assert {offset for offset in range(99) if ledger.has_been_sent((1, offset))} == sent


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"{",
        PRIVATE.encode(),
        b'{"selection":{}}',
        b"[" * 100_000,
        receipt({}, 1, [(0, 10**18)]),
        receipt({}, 1, [(7, 7)]),
        receipt({}, 1, [(5, 4)]),
        receipt({}, 1, [(-1, 4)]),
    ],
)
def test_a_receipt_that_is_not_understood_is_counted_and_passed_over(value: bytes | None) -> None:
    ledger = Ledger()
    ledger.add(record_of_kafka([], value))
    assert ledger.not_understood == 1
    assert not ledger.has_been_sent((1, 0))
