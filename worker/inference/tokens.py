"""From texts to token ids, cut at the model's limit, and from token ids to batches.

Whoever sends a text decides how long it is, and a model reads only its first tokens. A tokenizer keeps
some 400 bytes for a character, so long texts are tokenized only as far as the model reads, where the
tokens of a beginning are sure to be those of the whole, and not many characters at once.
"""

from __future__ import annotations

import json
import re
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer

from worker.errors import ArtifactError, EngineError
from worker.inference.artifact import TOKENIZER_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from worker.inference.artifact import Artifact

_CHARACTERS_AT_ONCE: Final = 2**18
_LONG_TEXT: Final = 2**12
# At most so many characters are first taken for a token; four are usual.
_CHARACTERS_OF_A_TOKEN: Final = 16
_SPECIAL_TOKENS: Final = 2
# A regular expression that matches single characters.
_ONE_CHARACTER: Final = re.compile(r"\[[^\[\]^]+\]")


class Tokens(NamedTuple):
    """The token ids of a text, special tokens included, and whether the text was cut."""

    ids: list[int]
    truncated: bool


class TextTokenizer:
    """The tokenizer of an artifact."""

    def __init__(self, artifact: Artifact) -> None:
        """Load `tokenizer.json`; its own padding and truncation, if any, are switched off.

        Raises:
            ArtifactError: the file is not a tokenizer.

        """
        path, content = artifact.folder / TOKENIZER_FILE, artifact.read(TOKENIZER_FILE)
        try:
            self._tokenizer = Tokenizer.from_buffer(content)
        except BaseException as error:
            if not _is_of_tokenizers(error):
                raise
            raise ArtifactError(f"{path} is not a tokenizer", "prepare the model anew") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._limit = artifact.manifest.max_tokens
        self._margin = margin_of(self._tokenizer)

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the tokens of each text; every string has at least the two special ones.

        A lone surrogate, which a text has that was cut inside an emoji, counts as U+FFFD.

        Raises:
            EngineError: the tokenizer fails on one of the texts.

        """
        clean = [text if text.isascii() else _without_surrogates(text) for text in texts]
        return [
            tokens
            for group in _groups(clean)
            for tokens in (
                [self._encode_long(group[0])]
                if len(group) == 1
                else map(self._cut, self._ids(group))
            )
        ]

    def _encode_long(self, text: str) -> Tokens:
        """Tokenize ever longer beginnings of a text until one has all that the model reads."""
        if self._margin is not None:
            enough = self._limit + self._margin
            length = _CHARACTERS_OF_A_TOKEN * enough
            while length < len(text):
                (ids,) = self._ids([text[:length]])
                if len(ids) > enough:
                    return self._cut(ids)
                length *= 4
        (ids,) = self._ids([text])
        return self._cut(ids)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]
        except BaseException as error:
            if not _is_of_tokenizers(error):
                raise
            raise EngineError("the tokenizer fails on a text") from None

    def _cut(self, ids: list[int]) -> Tokens:
        if len(ids) <= self._limit:
            return Tokens(ids, truncated=False)
        return Tokens([*ids[: self._limit - 1], ids[-1]], truncated=True)


def _is_of_tokenizers(error: BaseException) -> bool:
    """Return whether the library may have raised it: bare exceptions, and panics, which are none."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def margin_of(tokenizer: Tokenizer) -> int | None:
    """Return how many tokens at the end of a text's beginning may not be those of the whole text.

    That is known for what BERT's tokenizers do: they look at a character, a word, or a token that was
    added, and the words of a text do not depend on each other. It is None for all others.
    """
    model = tokenizer.model
    spans = _spans(
        json.loads(tokenizer.normalizer.__getstate__() if tokenizer.normalizer else b"{}")
    )
    if (
        not isinstance(model, WordPiece)
        or not isinstance(tokenizer.pre_tokenizer, BertPreTokenizer)
        or spans is None
    ):
        return None
    added = [len(token.content) for token in tokenizer.get_added_tokens_decoder().values()]
    # The last word, and whatever may have become of the last characters.
    return _SPECIAL_TOKENS + int(model.max_input_chars_per_word) + max([*spans, *added]) + 2


def _spans(normalizer: dict[str, Any]) -> list[int] | None:
    """Return how many characters each step of a normalizer looks at, or None if that is unknown."""
    kind = normalizer.get("type")
    if kind == "Sequence":
        found = [_spans(step) for step in normalizer["normalizers"]]
        known = [spans for spans in found if spans is not None]
        return list(chain.from_iterable(known)) if len(known) == len(found) else None
    if kind == "Replace":
        pattern = normalizer["pattern"]
        if "String" in pattern:
            return [len(pattern["String"])]
        return [1] if _ONE_CHARACTER.fullmatch(pattern["Regex"]) else None
    return [1] if kind == "BertNormalizer" else None


def _groups(texts: Sequence[str]) -> Iterator[list[str]]:
    """Cut texts, in their order, into groups of not too many characters; a long one is alone."""
    group: list[str] = []
    characters = 0
    for text in texts:
        alone = len(text) > _LONG_TEXT
        if group and (alone or characters + len(text) > _CHARACTERS_AT_ONCE):
            yield group
            group, characters = [], 0
        group.append(text)
        characters += len(text)
        if alone:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _without_surrogates(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def cut_batches(
    sequences: Sequence[list[int]], token_budget: int
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Cut texts into batches of at most `token_budget` tokens, in the order of their lengths.

    Yields, for each batch, the indices of its texts and their token ids. A text that is longer than
    the budget is a batch of its own.
    """
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(sequences)), key=lambda index: len(sequences[index])):
        tokens += len(sequences[index])
        if batch and tokens > token_budget:
            yield batch, [sequences[each] for each in batch]
            batch, tokens = [], len(sequences[index])
        batch.append(index)
    if batch:
        yield batch, [sequences[each] for each in batch]
