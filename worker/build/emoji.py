"""Tokens and embedding rows for emoji, which BERT's vocabularies lack.

Without them every emoji is [UNK], and so is the word it touches: "lol😂" says nothing at all.
Each emoji becomes a token that is cut out wherever it stands, and its embedding row starts from
the words of its Unicode name, so that emoji that no training text holds mean something too.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING

import torch
from tokenizers import AddedToken, Regex, Tokenizer, normalizers

if TYPE_CHECKING:
    from collections.abc import Iterable

_BLOCKS = (
    (0x2600, 0x27BF),  # Miscellaneous Symbols, Dingbats
    (0x1F1E6, 0x1F1FF),  # regional indicators: flags
    (0x1F300, 0x1F64F),  # Miscellaneous Symbols and Pictographs, Emoticons
    (0x1F680, 0x1F6FF),  # Transport and Map Symbols
    (0x1F900, 0x1F9FF),  # Supplemental Symbols and Pictographs
    (0x1FA70, 0x1FAFF),  # Symbols and Pictographs Extended-A
)
# Skin tones, and the frame around keycap digits.
_REMOVED = "[\U0001f3fb-\U0001f3ff\u20e3]"
_SEEN_AT_LEAST = 3
# Words of names that tell how an emoji is drawn, not what it says.
_DRAWING_WORDS = frozenset(
    [
        "a",
        "and",
        "black",
        "emoji",
        "face",
        "for",
        "heavy",
        "in",
        "indicator",
        "letter",
        "of",
        "on",
        "regional",
        "sign",
        "symbol",
        "the",
        "white",
        "with",
    ]
)


def emoji_of(texts: Iterable[str]) -> list[str]:
    """Return the emoji that deserve a token: the common ones and those of the texts.

    Common are all named characters of Unicode's emoji blocks; of the texts, other symbols that
    at least three of them have.
    """
    common = {chr(point) for first, last in _BLOCKS for point in range(first, last + 1)}
    seen = Counter(
        char for text in texts for char in set(text) if unicodedata.category(char) == "So"
    )
    wanted = common | {char for char, count in seen.items() if count >= _SEEN_AT_LEAST}
    return sorted(
        char for char in wanted if unicodedata.name(char, "") and not re.fullmatch(_REMOVED, char)
    )


def add_emoji(tokenizer: Tokenizer, embeddings: torch.Tensor, texts: Iterable[str]) -> torch.Tensor:
    """Add emoji to a tokenizer, and return its embeddings, [vocabulary, dim], with their rows.

    A row starts as the mean of the rows of its name's words, at the usual length of a row. Skin
    tones are removed from texts: they must not change a label.
    """
    emoji = emoji_of(texts)
    new = [char for char in emoji if tokenizer.token_to_id(char) is None]
    usual = embeddings.norm(dim=1).median()
    rows = [embeddings]
    names = [_name_words(char) for char in new]
    for encoding in tokenizer.encode_batch(names, add_special_tokens=False):
        mean = embeddings[encoding.ids].mean(dim=0)
        rows.append((mean * usual / mean.norm()).unsqueeze(0))
    tokenizer.add_tokens([AddedToken(char, normalized=False) for char in new])
    # A symbol that the vocabulary has keeps its id, but is now cut out of words too.
    tokenizer.add_tokens([AddedToken(char, normalized=False) for char in emoji])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(_REMOVED), ""), tokenizer.normalizer]
    )
    return torch.cat(rows)


def _name_words(char: str) -> str:
    words = re.split(r"[\s-]+", unicodedata.name(char).lower())
    return " ".join([word for word in words if word not in _DRAWING_WORDS] or words)
