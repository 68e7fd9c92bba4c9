"""Peer: this worker's classifier, remembering nothing, or a chat with its repeats and its table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from benchmarks.peers.peer import serve
from worker.defaults import MEMORY_ENTRIES, TOKEN_BUDGET
from worker.inference.classifier import Classifier
from worker.inference.engine import load_model
from worker.inference.tokens import TextTokenizer, cut_batches
from worker.settings.schema import KafkaSettings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Ours:
    def __init__(self, folder: Path, *, remembers: bool) -> None:
        self._artifact = load_model(folder / "model")
        self._remembers = remembers
        self._classifier = Classifier(self._artifact, memory_entries=0)
        self._chunk = KafkaSettings().chunk_records

    @property
    def most(self) -> int:
        return MEMORY_ENTRIES if self._remembers else self._chunk

    def labels(self, texts: Sequence[str]) -> list[str]:
        """Label texts chunk by chunk, with a table that is empty at first, if any."""
        classifier = Classifier(self._artifact) if self._remembers else self._classifier
        parts = [texts[at : at + self._chunk] for at in range(0, len(texts), self._chunk)]
        return [
            label for part in parts for each in classifier.classify(part) for label in each.labels
        ]

    def logits(self, texts: Sequence[str]) -> list[list[float]]:
        tokens = [each.ids for each in TextTokenizer(self._artifact).encode(texts)]
        logits: list[list[float]] = [[]] * len(texts)
        for batch, token_ids in cut_batches(tokens, TOKEN_BUDGET):
            rows = self._classifier.engine.run(token_ids)
            for index, row in zip(batch, rows, strict=True):
                logits[index] = np.asarray(row).tolist()
        return logits


def load(folder: Path, kind: str) -> Ours:
    return Ours(folder, remembers=kind == "repeats")


if __name__ == "__main__":
    serve(load)
