"""Every string has tokens; batches are full, and take texts in the order of their lengths."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.inference.tokens import TextTokenizer, cut_batches

if TYPE_CHECKING:
    from worker.inference.artifact import Artifact


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
