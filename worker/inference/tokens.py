"""From texts to token ids, cut at the model's limit, and from token ids to batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tokenizers import Tokenizer

from worker.errors import ArtifactError
from worker.inference.artifact import TOKENIZER_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from worker.inference.artifact import Artifact


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
        """Return the tokens of each text; every string has at least the two special ones.

        A lone surrogate, which a text has that was cut inside an emoji, counts as U+FFFD.
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
