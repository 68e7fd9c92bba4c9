"""Emoji become tokens that mean what their names say."""

from __future__ import annotations

from unicodedata import category

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.build.conftest import tiny_tokenizer
from worker.build.emoji import add_emoji, emoji_names

SKIN_TONES = "\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"
# A symbol, in Unicode's words, but no emoji.
SYMBOL = "\u24b6"
WORDS = st.text("abcdefghijklmnopqrstuvwxyz ", max_size=20)
EMOJI = st.sampled_from(sorted(emoji_names([])))


def some_rows(count: int) -> torch.Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(0))


with_emoji = tiny_tokenizer()
before = some_rows(with_emoji.get_vocab_size())
after = add_emoji(with_emoji, before, [])


def tokens(text: str) -> list[str]:
    encoded: list[str] = with_emoji.encode(text, add_special_tokens=False).tokens
    return encoded


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.cosine_similarity(one, other, dim=0))


def row(token: str) -> torch.Tensor:
    index = with_emoji.token_to_id(token)
    assert index is not None
    return after[index]


@pytest.mark.parametrize("emoji", ["😂", "❤", "⌚", "☕", "👍", "🥺", "🇫🇷"])
def test_an_emoji_has_names_though_no_text_has_it(emoji: str) -> None:
    assert emoji_names([])[emoji]


@pytest.mark.parametrize(
    ("emoji", "words"),
    [("😂", {"tears", "joy"}), ("❤", {"red", "heart"}), ("👍", {"thumbs", "up"})],
)
def test_names_say_what_an_emoji_shows(emoji: str, words: set[str]) -> None:
    assert words <= set(emoji_names([])[emoji].split())


def test_names_do_not_say_how_an_emoji_is_drawn() -> None:
    assert not {"face", "with", "of"} & set(emoji_names([])["😂"].split())


def test_no_name_is_empty() -> None:
    assert all(emoji_names([]).values())


@pytest.mark.parametrize("char", [*SKIN_TONES, "\u20e3", "\ufe0f", "a"])
def test_skin_tones_frames_and_letters_are_no_emoji(char: str) -> None:
    assert char not in emoji_names([f"{char}{number}" for number in range(9)])


def test_a_symbol_counts_where_three_texts_have_it() -> None:
    assert category(SYMBOL) == "So"
    assert SYMBOL not in emoji_names([SYMBOL * 9, SYMBOL])
    assert SYMBOL in emoji_names([SYMBOL, f"we {SYMBOL}", f"{SYMBOL}!"])


def test_an_emoji_is_a_token_of_its_own_in_any_surroundings() -> None:
    assert tokens("we😂you") == ["we", "😂", "you"]
    assert tokens("😂😂 love😂!") == ["😂", "😂", "love", "😂", "!"]


@given(st.lists(WORDS | EMOJI, max_size=8))
def test_emoji_leave_the_tokens_of_the_words_between_them_alone(parts: list[str]) -> None:
    apart = [token for part in parts for token in tokens(part)]
    assert tokens(" ".join(parts)) == apart


@pytest.mark.parametrize("tone", SKIN_TONES)
def test_a_skin_tone_changes_nothing(tone: str) -> None:
    assert tokens(f"we👍{tone} win") == tokens("we👍 win") == ["we", "👍", "win"]


def test_variants_of_an_emoji_are_the_same_token() -> None:
    assert tokens("❤\ufe0f") == tokens("❤") == ["❤"]


def test_a_digit_in_a_frame_is_the_digit() -> None:
    assert tokens("1\ufe0f\u20e3") == ["1"]


def test_every_token_has_a_row() -> None:
    assert after.shape == (with_emoji.get_vocab_size(), before.shape[1])
    assert set(with_emoji.get_vocab().values()) == set(range(len(after)))
    assert after.isfinite().all()


def test_the_rows_there_were_stay() -> None:
    assert torch.equal(after[: len(before)], before)


def test_a_row_points_where_the_rows_of_the_words_of_its_names_point() -> None:
    ids = with_emoji.encode(emoji_names([])["😂"], add_special_tokens=False).ids
    assert cosine(row("😂"), after[ids].mean(dim=0)) == pytest.approx(1)


@given(EMOJI)
def test_a_row_is_as_long_as_rows_usually_are(emoji: str) -> None:
    usual = before.norm(dim=1).median()
    torch.testing.assert_close(row(emoji).norm(), usual)


def test_a_symbol_that_the_vocabulary_has_keeps_its_row_and_stands_alone_now() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["☕"])
    rows = some_rows(tokenizer.get_vocab_size())
    index = tokenizer.token_to_id("☕")

    added = add_emoji(tokenizer, rows, [])

    assert tokenizer.token_to_id("☕") == index
    assert torch.equal(added[: len(rows)], rows)
    assert tokenizer.encode("we☕you", add_special_tokens=False).tokens == ["we", "☕", "you"]


def test_a_base_that_has_emoji_gets_no_more_rows() -> None:
    tokenizer = tiny_tokenizer()
    once = add_emoji(tokenizer, before, [])
    assert torch.equal(add_emoji(tokenizer, once, []), once)


def test_a_base_with_more_rows_than_tokens_gets_each_row_where_its_token_points() -> None:
    tokenizer = tiny_tokenizer()
    rows = add_emoji(tokenizer, torch.cat([before, before[:5]]), [])
    index = tokenizer.token_to_id("😂")
    assert index is not None
    assert cosine(rows[index], row("😂")) == pytest.approx(1)
