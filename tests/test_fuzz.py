"""Whatever bytes others write: what comes of them is a value of ours, or an error for a person.

`make fuzz` runs these tests, and all others that state an invariant, for an hour with examples of
its own, and keeps those that were of interest.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.consumer.fetcher import ConsumerRecord

from tests.conftest import sign
from worker.dead_letters.letters import Filters, letters_of_files
from worker.dead_letters.receipts import Ledger
from worker.dead_letters.topic import is_receipt, letter_of
from worker.errors import ArtifactError, EngineError, WorkerError
from worker.events.decoding import Fields, decode_text, json_decoder, row_decoder
from worker.events.records import DeadLetter, Event, FilePlace, Record, Skipped
from worker.inference.artifact import (
    BUILT_IN_MODEL,
    MANIFEST_FILE,
    TOKENIZER_FILE,
    load_artifact,
)
from worker.inference.tokens import TextTokenizer
from worker.settings.loading import load_settings
from worker.transports.kafka import records

if TYPE_CHECKING:
    from pathlib import Path

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
OURS = sorted(value for value in vars(records).values() if str(value).startswith(records.PREFIX))
NUMBERS = st.integers(-(2**70), 2**70).map(lambda number: str(number).encode())
CONTENTS = st.none() | st.binary() | NUMBERS | JSON.map(json.dumps).map(str.encode)
TOKENIZER = json.loads((BUILT_IN_MODEL / TOKENIZER_FILE).read_bytes())
# Of thirty thousand words few are enough.
TOKENIZER["model"]["vocab"] = {
    word: number for word, number in TOKENIZER["model"]["vocab"].items() if number < 1100
}
TOKENIZER["added_tokens"] = [
    token for token in TOKENIZER["added_tokens"] if token["id"] in range(1100)
]
MANIFEST = json.loads((BUILT_IN_MODEL / MANIFEST_FILE).read_bytes())
CONFIG = """
[kafka]
brokers = ["127.0.0.1:9092"]
guarantee = "at-least-once"
chunk_seconds = 0.5
[kafka.tls]
enabled = false
[thresholds]
joy = 0.5
[input]
keep = ["user"]
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="session")
def model_copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model folder to change."""
    return shutil.copytree(BUILT_IN_MODEL, tmp_path_factory.mktemp("fuzz") / "model")


def mutated(content: Any, data: st.DataObject) -> Any:
    """Return content with one value, at any depth, changed or gone."""
    if isinstance(content, dict) and content and data.draw(st.integers(0, 5)):
        name = data.draw(st.sampled_from(sorted(content)))
        changed = dict(content)
        if data.draw(st.integers(0, 5)):
            changed[name] = mutated(content[name], data)
        else:
            del changed[name]
        return changed
    return data.draw(JSON)


@given(
    headers=st.lists(st.tuples(st.sampled_from(OURS) | st.text(), CONTENTS), max_size=12),
    value=st.none() | st.binary(),
    timestamp=st.integers(-(2**63), 2**63 - 1),
)
def test_a_record_of_the_dead_letter_topic_is_a_letter_a_receipt_or_neither(
    headers: list[tuple[str, bytes | None]], value: bytes | None, timestamp: int
) -> None:
    record = ConsumerRecord("dead", 0, -1, 7, timestamp, 0, None, value, headers, None, -1, -1, -1)
    letter = letter_of(record)
    if letter is not None:
        assert Filters(kinds=(letter.kind,)).take(letter)
    if is_receipt(record):
        Ledger().add(record)


@given(data=st.data(), raw=st.binary() | JSON.map(json.dumps).map(str.encode))
def test_a_receipt_is_understood_or_counted(data: st.DataObject, raw: bytes) -> None:
    receipt = {"selection": {}, "number": 1, "until": {"0": 5}, "sent": [[0, 1]]}
    changed = json.dumps(mutated(receipt, data)).encode()
    ledger = Ledger()
    for value in (raw, changed):
        ledger.add(ConsumerRecord("dead", 0, -1, 7, 0, 0, None, value, [], None, -1, -1, -1))
    assert not ledger.has_been_sent((0, 9))
    assert ledger.not_understood in {0, 1, 2}


@given(data=st.data(), line=st.binary())
def test_a_line_of_a_file_of_dead_letters_is_a_letter_or_an_error(
    folder: Path, data: st.DataObject, line: bytes
) -> None:
    letter = {"source": "a", "line": 1, "kind": "not-json", "reason": "why", "value": "{"}
    path = folder / "letters.jsonl"
    for content in (line, json.dumps(mutated(letter, data)).encode()):
        path.write_bytes(content)
        with suppress(WorkerError):
            list(letters_of_files([path], Filters()))


@given(value=st.binary() | JSON.map(json.dumps).map(str.encode))
def test_a_record_is_an_event_a_dead_letter_or_skipped(value: bytes) -> None:
    fields = Fields(keep=("user",), skip="bot")
    record = Record(value, FilePlace("a", 1))
    for decode in (
        decode_text,
        json_decoder(fields),
        row_decoder(["id", "text"], fields, ","),
        row_decoder(["id", "text"], fields, "\t"),
    ):
        assert isinstance(decode(record), Event | DeadLetter | Skipped)


@given(data=st.data(), raw=st.binary())
def test_a_manifest_is_read_or_is_an_error_that_names_it(
    folder: Path, data: st.DataObject, raw: bytes
) -> None:
    path = folder / MANIFEST_FILE
    for content in (raw, json.dumps(mutated(MANIFEST, data)).encode()):
        path.write_bytes(content)
        with pytest.raises(WorkerError, match=str(folder)):
            load_artifact(folder)


@given(data=st.data(), text=st.text())
def test_a_tokenizer_works_or_is_an_error_that_names_it(
    model_copies: Path, data: st.DataObject, text: str
) -> None:
    path = model_copies / TOKENIZER_FILE
    path.write_bytes(json.dumps(mutated(TOKENIZER, data)).encode())
    sign(model_copies, TOKENIZER_FILE)
    try:
        tokenizer = TextTokenizer(load_artifact(model_copies))
    except ArtifactError as error:
        assert str(path) in str(error)  # noqa: PT017 - either is right
        return
    with suppress(EngineError):
        for tokens in tokenizer.encode(["", text, "gg wp " * 300]):
            assert all(isinstance(number, int) for number in tokens.ids)


@given(data=st.data())
def test_a_file_of_settings_is_read_or_is_an_error(folder: Path, data: st.DataObject) -> None:
    lines = CONFIG.splitlines()
    index = data.draw(st.integers(0, len(lines) - 1))
    lines[index] = data.draw(
        st.text() | st.builds("{} = {}".format, st.sampled_from(["brokers", "x", "joy"]), st.text())
    )
    path = folder / "worker.toml"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    with suppress(WorkerError):
        load_settings(path, {})
