"""Tokens and embedding rows for emoji, which BERT's vocabularies lack.

Without them every emoji is [UNK], and so is the word it touches: "lol😂" says nothing at all.
Each emoji becomes a token that is cut out wherever it stands, and its embedding row starts from
the words of its names, so that emoji that no training text holds mean something too.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING

import torch
from emoji import EMOJI_DATA
from tokenizers import AddedToken, Regex, Tokenizer, normalizers

if TYPE_CHECKING:
    from collections.abc import Iterable

_FLAG = re.compile("[\U0001f1e6-\U0001f1ff]{2}")
_VARIATION_SELECTOR = "\ufe0f"
# These are skin tones, and the frame around keycap digits.
_REMOVED = "[\U0001f3fb-\U0001f3ff\u20e3]"
_SEEN_AT_LEAST = 3
# These words of names describe how an emoji is drawn, not what it says.
_DRAWING_WORDS = frozenset({"a", "and", "button", "face", "of", "on", "sign", "the", "with"})


def emoji_names(texts: Iterable[str]) -> dict[str, str]:
    """Return the emoji that deserve a token, each with the words of its names.

    All of Unicode's emoji of one character, all flags, and of the texts, other symbols that at
    least three of them have.
    """
    names = {}
    for sequence, data in EMOJI_DATA.items():
        char = sequence.replace(_VARIATION_SELECTOR, "")
        if len(char) == 1 or _FLAG.fullmatch(char):
            names[char] = _words(" ".join([data["en"], *data.get("alias", ())]))
    seen = Counter(
        char for text in texts for char in set(text) if unicodedata.category(char) == "So"
    )
    for char, count in seen.items():
        if count >= _SEEN_AT_LEAST and char not in names:
            names[char] = _words(unicodedata.name(char, "symbol"))
    return {char: names[char] for char in sorted(names) if not re.fullmatch(_REMOVED, char)}


def add_emoji(tokenizer: Tokenizer, embeddings: torch.Tensor, texts: Iterable[str]) -> torch.Tensor:
    """Add emoji to a tokenizer, and return its embeddings, [vocabulary, dim], with their rows.

    A row starts as the mean of the rows of its names' words, at the usual length of a row. Skin
    tones are removed from texts: they must not change a label.
    """
    names = emoji_names(texts)
    new = [char for char in names if tokenizer.token_to_id(char) is None]
    # A base may have more rows than tokens. They go, so that a new token's row stands where its id points.
    embeddings = embeddings[: tokenizer.get_vocab_size()]
    usual = embeddings.norm(dim=1).median()
    rows = [embeddings]
    for encoding in tokenizer.encode_batch([names[char] for char in new], add_special_tokens=False):
        mean = embeddings[encoding.ids].mean(dim=0)
        rows.append((mean * usual / mean.norm()).unsqueeze(0))
    tokenizer.add_tokens([AddedToken(char, normalized=False) for char in new])
    # A symbol that the vocabulary has already keeps its id, and from now on is cut out of words too.
    tokenizer.add_tokens([AddedToken(char, normalized=False) for char in names])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(_REMOVED), ""), tokenizer.normalizer]
    )
    return torch.cat(rows)


def _words(names: str) -> str:
    """Return the words of names that say something, each once."""
    words = list(dict.fromkeys(re.findall(r"[^\W_]+", names.lower())))
    return " ".join([word for word in words if word not in _DRAWING_WORDS] or words)
