"""What peers have in common that take token ids and give logits; needs numpy and tokenizers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from benchmarks.peers.peer import PADDED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MOST_TOKENS = 512


@dataclass(frozen=True)
class Labeller:
    """A model by its logits: a text's label is the one with the largest."""

    names: Sequence[str]
    run: Callable[[Sequence[str]], NDArray[np.float32]]
    most: int = PADDED

    def labels(self, texts: Sequence[str]) -> list[str]:
        return [self.names[index] for index in self.run(texts).argmax(axis=1)]

    def logits(self, texts: Sequence[str]) -> list[list[float]]:
        rows: list[list[float]] = self.run(texts).tolist()
        return rows


def label_names(folder: Path) -> list[str]:
    config = json.loads((folder / "checkpoint" / "config.json").read_bytes())
    return list(config["id2label"].values())


def load_tokenizer(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(folder / "checkpoint" / "tokenizer.json"))
    tokenizer.enable_truncation(MOST_TOKENS)
    return tokenizer


def padded_inputs(folder: Path) -> Callable[[Sequence[str]], dict[str, NDArray[np.int64]]]:
    """Return what makes the inputs of an exported graph, padded to the longest text."""
    tokenizer = load_tokenizer(folder)
    tokenizer.enable_padding()

    def inputs(texts: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        encodings = tokenizer.encode_batch_fast(texts)
        return {
            "input_ids": np.array([each.ids for each in encodings], dtype=np.int64),
            "attention_mask": np.array([each.attention_mask for each in encodings], dtype=np.int64),
        }

    return inputs
