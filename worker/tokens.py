"""Texts to token ids, cut at the model's limit."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from worker.artifact import TOKENIZER_FILE
from worker.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from worker.artifact import Artifact


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
        path = artifact.folder / TOKENIZER_FILE
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception:  # noqa: BLE001 - tokenizers raises bare exceptions
            raise ArtifactError(f"{path} is not a tokenizer", "prepare the model anew") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._limit = artifact.manifest.max_tokens

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the tokens of each text; any string has some, the special ones at least.

        Half a surrogate pair, as a text cut inside an emoji has it, counts as U+FFFD.
        """
        clean = [text if text.isascii() else _without_surrogates(text) for text in texts]
        encodings = self._tokenizer.encode_batch_fast(clean)
        return [self._cut(encoding.ids) for encoding in encodings]

    def _cut(self, ids: list[int]) -> Tokens:
        if len(ids) <= self._limit:
            return Tokens(ids, truncated=False)
        return Tokens([*ids[: self._limit - 1], ids[-1]], truncated=True)


def _without_surrogates(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def id_batches(
    sequences: Sequence[list[int]], token_budget: int
) -> Iterator[tuple[list[int], NDArray[np.int64]]]:
    """Yield batches as `cut_batches` cuts them: indices, and token ids, shape [batch, tokens]."""
    for batch in cut_batches([len(ids) for ids in sequences], token_budget):
        yield batch, np.array([sequences[index] for index in batch], dtype=np.int64)


def cut_batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Cut texts into batches of one length each and at most `token_budget` tokens.

    Yields the indices of each batch's texts; a text longer than the budget stands alone.
    """
    by_length: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        by_length.setdefault(length, []).append(index)
    for length, indices in by_length.items():
        size = max(1, token_budget // length)
        for start in range(0, len(indices), size):
            yield indices[start : start + size]
