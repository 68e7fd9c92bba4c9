"""A transformers checkpoint of a DistilBERT sequence classifier, read and scored in fp32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, DistilBertForSequenceClassification
from transformers.utils import logging as transformers_logging

from worker.errors import WorkerError
from worker.inference.decisions import Task, decide, scores_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

TASK_OF_PROBLEM_TYPE = {
    "single_label_classification": Task.ONE_OF,
    "multi_label_classification": Task.SEVERAL,
}
_TOKENS_A_BATCH = 4096
_MOST_BYTES_OF_TEXT = 256 << 20


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A classifier as trained; `thresholds` has a value for each of `labels`, in their order."""

    folder: Path
    model: DistilBertForSequenceClassification
    tokenizer: Tokenizer
    task: Task
    labels: tuple[str, ...]
    thresholds: tuple[float, ...]
    max_tokens: int

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """Load a checkpoint folder: `config.json`, safetensors weights, `tokenizer.json`.

        Raises:
            WorkerError: the folder does not hold a DistilBERT sequence classifier.

        """
        quiet_transformers()
        tokenizer = load_tokenizer(str(folder), local=True)
        try:
            model = DistilBertForSequenceClassification.from_pretrained(
                folder, use_safetensors=True, local_files_only=True
            )
        except (OSError, ValueError, RuntimeError):
            raise _not_a_checkpoint(folder) from None
        config: Any = model.config
        if config.model_type != "distilbert":
            raise _not_a_checkpoint(folder)
        names: dict[int, str] = config.id2label
        labels = tuple(names[index] for index in range(len(names)))
        task = TASK_OF_PROBLEM_TYPE.get(config.problem_type, Task.ONE_OF)
        given = getattr(config, "thresholds", None) or {}
        usual = 0.0 if task is Task.ONE_OF else 0.5
        thresholds = tuple(float(given.get(label, usual)) for label in labels)
        limit = config.max_position_embeddings
        model.eval()  # type: ignore[no-untyped-call]  # transformers types few
        return cls(folder, model, tokenizer, task, labels, thresholds, limit)

    def logits(self, texts: Sequence[str], max_tokens: int | None = None) -> NDArray[np.float32]:
        """Return logits in fp32, shape [texts, labels]; texts are cut, but not padded."""
        encodings = encode(self.tokenizer, texts, max_tokens or self.max_tokens)
        return predict_logits(self.model, encodings)

    def scores(self, texts: Sequence[str], max_tokens: int | None = None) -> NDArray[np.float32]:
        """Return scores in fp32, shape [texts, labels]."""
        return np.array([scores_of(self.task, row) for row in self.logits(texts, max_tokens)])

    def decide(self, scores: NDArray[np.float32]) -> list[set[str]]:
        """Return the labels given for scores, shape [texts, labels]."""
        return [
            set(decide(self.task, self.labels, row, self.thresholds)) for row in scores.tolist()
        ]


def load_tokenizer(name: str, *, local: bool) -> Tokenizer:
    """Load a tokenizer, without any padding or truncation of its own.

    With `local` the name is always that of a folder, never a hub id.

    Raises:
        WorkerError: there is none, or a file of its folder has no end.

    """
    _refuse_files_without_end(Path(name))
    try:
        tokenizer = getattr(
            AutoTokenizer.from_pretrained(name, local_files_only=local, trust_remote_code=False),
            "backend_tokenizer",
            None,
        )
    except (OSError, ValueError):
        tokenizer = None
    if not isinstance(tokenizer, Tokenizer):
        raise _not_a_checkpoint(Path(name))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _refuse_files_without_end(folder: Path) -> None:
    """Make sure that nothing in a checkpoint is read for ever, or into all memory."""
    for path in folder.glob("*"):
        if not path.is_file() and not path.is_dir():
            raise WorkerError(f"{path} is not a regular file", "name a folder of regular files")
        if path.suffix in {".json", ".txt"} and path.stat().st_size > _MOST_BYTES_OF_TEXT:
            raise WorkerError(
                f"{path} has {path.stat().st_size} bytes, more than any checkpoint's",
                "name a checkpoint folder such as `worker finetune` writes",
            )


def encode(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Return the token ids of each text, cut at `max_tokens`."""
    tokenizer.enable_truncation(max_tokens)
    ids = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    tokenizer.no_truncation()
    return ids


@torch.inference_mode()
def predict_logits(
    model: DistilBertForSequenceClassification, encodings: Sequence[Sequence[int]]
) -> NDArray[np.float32]:
    """Return the logits of each text, shape [texts, labels], from batches of one length each."""
    by_length: dict[int, list[int]] = {}
    for index, ids in enumerate(encodings):
        by_length.setdefault(len(ids), []).append(index)
    labels = len(model.config.id2label or ())
    logits = np.empty((len(encodings), labels), dtype=np.float32)
    for length, indices in by_length.items():
        size = max(1, _TOKENS_A_BATCH // length)
        for start in range(0, len(indices), size):
            part = indices[start : start + size]
            batch = torch.tensor([list(encodings[index]) for index in part], device=model.device)
            logits[part] = model(input_ids=batch).logits.float().cpu().numpy()
    return logits


def quiet_transformers() -> None:
    """Keep transformers from reporting on every weight that a new head starts without."""
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers types few
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers types few


def _not_a_checkpoint(folder: Path) -> WorkerError:
    return WorkerError(
        f"{folder} is not a DistilBERT sequence classifier with safetensors weights and a "
        "tokenizer.json",
        "name a checkpoint folder such as `worker finetune` writes",
    )
