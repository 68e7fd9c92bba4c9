"""The examples of chat, and a stream of chat that has the shape of real game chat."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from worker import cli
from worker.demo.chat import EXAMPLES, ChatStream, example_messages
from worker.events.decoding import Fields, json_decoder
from worker.events.records import DeadLetter, Record, TopicPlace
from worker.inference.classifier import Classifier
from worker.inference.tokens import TextTokenizer

if TYPE_CHECKING:
    from worker.inference.artifact import Artifact

README = Path(__file__).parents[2] / "README.md"
# The chat that the shape was measured on has as many lines.
LINES = 37_343


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return list(islice(ChatStream(1).texts(), LINES))


def test_the_examples_come_in_their_order_under_their_user() -> None:
    messages = example_messages()
    assert [message.value for message in messages] == EXAMPLES.read_bytes().splitlines()
    assert messages[0].key == json.loads(messages[0].value)["user"].encode()
    # These are the broken examples, and one that lacks only its text.
    assert sum(message.key is None for message in messages) == 8


def test_the_readme_shows_what_really_comes_out() -> None:
    shown = re.findall(
        r"^ ([a-z]+(?:, [a-z]+)*) {4,}(\S.*)$", README.read_text(encoding="utf-8"), re.MULTILINE
    )
    shown = [(labels, text) for labels, text in shown if "─" not in text]
    assert shown
    said = [json.loads(message.value)["text"] for message in example_messages() if message.key]
    results = Classifier.load().classify([text for _, text in shown])
    for (labels, text), result in zip(shown, results, strict=True):
        assert text in said
        assert labels == ", ".join(result.labels)


def test_messages_are_as_long_as_in_real_chat(artifact: Artifact, texts: list[str]) -> None:
    lengths = [len(tokens.ids) for tokens in TextTokenizer(artifact).encode(texts)]
    p95, p99 = np.percentile(lengths, [95, 99])
    assert np.mean(lengths) == pytest.approx(5.5, abs=0.2)
    assert (p95, p99) == (pytest.approx(10, abs=1), pytest.approx(15, abs=1))


@pytest.mark.parametrize(("most", "share"), [(10, 0.16), (100, 0.28), (1000, 0.41)])
def test_messages_repeat_as_in_real_chat(texts: list[str], most: int, share: float) -> None:
    said = Counter(texts).most_common(most)
    assert sum(times for _, times in said) / LINES == pytest.approx(share, abs=0.025)


def test_new_messages_keep_coming(texts: list[str]) -> None:
    half = LINES // 2
    new = Counter(texts[half:]).keys() - set(texts[:half])
    assert len(new) > 0.45 * half


def test_a_seed_gives_the_same_chat_and_another_one_the_same_familiar_messages() -> None:
    first, again, other = (list(islice(ChatStream(n).messages(), 2000)) for n in (1, 1, 2))
    assert first == again != other
    frequent = [
        {text for text, _ in Counter(islice(ChatStream(n).texts(), LINES)).most_common(100)}
        for n in (1, 2)
    ]
    assert len(frequent[0] & frequent[1]) > 80


def test_few_messages_are_broken_and_each_is_of_its_user() -> None:
    decode = json_decoder(Fields(keep=("user",)))
    items = []
    for number, message in enumerate(islice(ChatStream(3).messages(), 20_000)):
        item = decode(Record(message.value, TopicPlace("chat", 0, number)))
        items.append(item)
        if isinstance(item, DeadLetter):
            assert message.key is None
        else:
            assert message.key == json.loads(message.value)["user"].encode()
    broken = sum(isinstance(item, DeadLetter) for item in items)
    assert 0.001 < broken / len(items) < 0.003


@pytest.mark.parametrize("variable", ["KAFKA__FORMAT=text", "INPUT__TEXT_FIELD=body"])
def test_what_the_worker_would_not_read_is_not_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str
) -> None:
    name, _, value = variable.partition("=")
    monkeypatch.setenv(f"WORKER_{name}", value)
    assert cli.main(["demo"]) == 2
    assert "set kafka.format to json and input.text_field to text" in capsys.readouterr().err


@pytest.mark.parametrize("rate", ["0", "-1", "inf", "nan", "x"])
def test_a_rate_is_a_number_above_zero(capsys: pytest.CaptureFixture[str], rate: str) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["demo", "--rate", rate])
    assert end.value.code == 2
    assert "must be a number above 0" in capsys.readouterr().err
