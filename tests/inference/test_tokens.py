"""Every string has tokens; batches are full, and take texts in the order of their lengths."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import NFC, BertNormalizer, Replace, Sequence
from tokenizers.pre_tokenizers import WhitespaceSplit

from tests.conftest import sign
from worker.errors import ArtifactError, EngineError
from worker.inference.artifact import TOKENIZER_FILE, load_artifact
from worker.inference.tokens import TextTokenizer, cut_batches, margin_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from worker.inference.artifact import Artifact


@pytest.fixture(scope="session")
def whole_tokenizer(artifact: Artifact) -> Tokenizer:
    """Return the tokenizer itself, which reads every text to its end."""
    tokenizer: Tokenizer = Tokenizer.from_file(str(artifact.folder / TOKENIZER_FILE))
    tokenizer.no_truncation()
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer(artifact: Artifact) -> TextTokenizer:
    return TextTokenizer(artifact)


@given(text=st.text(st.characters()))
def test_any_text_has_at_least_its_two_special_tokens(tokenizer: TextTokenizer, text: str) -> None:
    ((ids, truncated),) = tokenizer.encode([text])
    assert ids[0] == 101
    assert ids[-1] == 102
    assert not truncated


@given(texts=st.lists(st.text(), max_size=5))
def test_tokens_do_not_depend_on_the_other_texts(
    tokenizer: TextTokenizer, texts: list[str]
) -> None:
    assert tokenizer.encode(texts) == [tokenizer.encode([text])[0] for text in texts]


PIECES = st.one_of(
    st.sampled_from(
        ["gg", "unbelievable", "!?", " ", "\n", "é", "e\u0301\u0302", "中文", "[SEP]", "[SE", "P]"]
    ),
    st.sampled_from(["😂", "👩\u200d👩\u200d👧", "🏻", "©", "\u200b", "\0", "ß", "İ", "\ufb01"]),
    st.text(max_size=5),
    st.builds(str.__mul__, st.text(max_size=2), st.integers(0, 9000)),
)


@settings(max_examples=200)
@given(pieces=st.lists(PIECES, max_size=8), times=st.integers(1, 3000))
def test_a_long_text_has_the_tokens_that_it_has_as_a_whole(
    tokenizer: TextTokenizer, whole_tokenizer: Tokenizer, pieces: list[str], times: int
) -> None:
    unit = "".join(pieces)
    text = unit * min(times, 40_000 // max(1, len(unit)))
    ids = whole_tokenizer.encode(text).ids
    limit = 256
    expected = (ids, False) if len(ids) <= limit else ([*ids[: limit - 1], ids[-1]], True)
    assert tokenizer.encode([text, "short", text]) == [
        expected,
        tokenizer.encode(["short"])[0],
        expected,
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda t: setattr(t, "pre_tokenizer", WhitespaceSplit()),
        lambda t: setattr(t, "normalizer", Replace(Regex(" +"), " ")),
        lambda t: setattr(t, "normalizer", Sequence([BertNormalizer(), NFC()])),
        lambda t: setattr(t, "model", BPE()),
    ],
)
def test_of_other_kinds_of_tokenizers_nothing_is_taken_for_granted(
    artifact: Artifact, change: Callable[[Tokenizer], None]
) -> None:
    tokenizer = Tokenizer.from_file(str(artifact.folder / TOKENIZER_FILE))
    assert margin_of(tokenizer) is not None
    change(tokenizer)
    assert margin_of(tokenizer) is None


def test_what_a_tokenizer_replaces_it_looks_at(artifact: Artifact) -> None:
    tokenizer = Tokenizer.from_file(str(artifact.folder / TOKENIZER_FILE))
    before = margin_of(tokenizer)
    tokenizer.normalizer = Sequence([Replace("a" * 200, "b"), BertNormalizer()])
    assert before is not None
    assert (margin_of(tokenizer) or 0) > max(before, 300)


def test_without_a_margin_a_long_text_is_read_as_a_whole(model_copy: Path) -> None:
    path = model_copy / TOKENIZER_FILE
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(path))
    sign(model_copy, TOKENIZER_FILE)
    ((ids, truncated),) = TextTokenizer(load_artifact(model_copy)).encode(["ok " * 10_000])
    assert (len(ids), truncated) == (256, True)


class PanicException(BaseException):
    """What the library raises where its own code fails."""


def test_a_panic_of_the_library_is_a_failure_on_a_text(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Panicking:
        def encode_batch_fast(self, _: object) -> None:
            raise PanicException

    tokenizer = TextTokenizer(artifact)
    monkeypatch.setattr(tokenizer, "_tokenizer", Panicking())
    with pytest.raises(EngineError, match="the tokenizer fails"):
        tokenizer.encode(["gg"])


@pytest.mark.parametrize("extra", [0, 1, 1000])
def test_texts_are_cut_at_the_limit_and_keep_their_end_token(
    tokenizer: TextTokenizer, artifact: Artifact, extra: int
) -> None:
    limit = artifact.manifest.max_tokens
    ((ids, truncated),) = tokenizer.encode(["ok " * (limit - 2 + extra)])
    assert len(ids) == limit
    assert (ids[0], ids[-1]) == (101, 102)
    assert truncated == (extra > 0)


def test_half_a_surrogate_pair_counts_as_a_replacement_character(tokenizer: TextTokenizer) -> None:
    assert tokenizer.encode(["cut \ud83d"]) == tokenizer.encode(["cut \ufffd"])


def test_a_whole_surrogate_pair_is_the_character_it_stands_for(tokenizer: TextTokenizer) -> None:
    assert tokenizer.encode(["ha \ud83d\ude02"]) == tokenizer.encode(["ha 😂"])


def test_an_emoji_is_a_token_of_its_own_and_leaves_the_word_it_touches(
    tokenizer: TextTokenizer,
) -> None:
    ((word, _), (emoji, _), (both, _)) = tokenizer.encode(["lol", "😂", "lol😂"])
    assert both == [*word[:-1], *emoji[1:]]


def test_a_skin_tone_changes_nothing(tokenizer: TextTokenizer) -> None:
    assert tokenizer.encode(["thanks 👍🏿"]) == tokenizer.encode(["thanks 👍"])


@given(lengths=st.lists(st.integers(1, 40), max_size=200), budget=st.integers(1, 100))
def test_batches_hold_each_text_once_and_at_most_the_budget(
    lengths: list[int], budget: int
) -> None:
    sequences = [[index] * length for index, length in enumerate(lengths)]
    batches = list(cut_batches(sequences, budget))
    assert sorted(index for batch, _ in batches for index in batch) == list(range(len(lengths)))
    for batch, token_ids in batches:
        assert token_ids == [sequences[index] for index in batch]
        assert sum(map(len, token_ids)) <= budget or len(batch) == 1


@given(lengths=st.lists(st.integers(1, 40), max_size=200), budget=st.integers(1, 100))
def test_batches_are_full_and_texts_of_one_length_stand_together(
    lengths: list[int], budget: int
) -> None:
    batches = [ids for _, ids in cut_batches([[0] * length for length in lengths], budget)]
    in_order = [len(ids) for batch in batches for ids in batch]
    assert in_order == sorted(lengths)
    for batch, following in pairwise(batches):
        assert sum(map(len, batch)) + len(following[0]) > budget


def test_a_tokenizer_without_its_unknown_token_is_an_engine_error(model_copy: Path) -> None:
    path = model_copy / TOKENIZER_FILE
    content = json.loads(path.read_bytes())
    del content["model"]["vocab"]["[UNK]"]
    path.write_text(json.dumps(content), encoding="utf-8")
    sign(model_copy, "tokenizer.json")
    tokenizer = TextTokenizer(load_artifact(model_copy))
    with pytest.raises(EngineError, match="the tokenizer fails on a text"):
        tokenizer.encode(["\u4e00\u4e01 𓀀"])


@pytest.mark.parametrize(
    ("part", "content"),
    [
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": ""}),
        ("model", {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}),
        ("model", {"type": "Other"}),
    ],
)
def test_a_tokenizer_that_panics_as_it_loads_is_an_artifact_error(
    model_copy: Path, part: str, content: dict[str, object]
) -> None:
    path = model_copy / TOKENIZER_FILE
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {part: content}), encoding="utf-8")
    sign(model_copy, TOKENIZER_FILE)
    with pytest.raises(ArtifactError, match="is not a tokenizer"):
        TextTokenizer(load_artifact(model_copy))
