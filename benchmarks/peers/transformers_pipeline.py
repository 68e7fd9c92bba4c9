"""Peer: the pipeline of transformers in fp32, in bf16, and around torch's dynamic int8.

Torch says of its dynamic quantization that it is to go; it is still what most people find first.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from benchmarks.peers.peer import PADDED, serve

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Pipeline:
    most = PADDED

    def __init__(self, model: Any, tokenizer: Any) -> None:  # noqa: ANN401 - quantized, it is no model of transformers
        self._places = model.config.label2id
        self._pipeline: Any = pipeline(
            "text-classification", model=model, tokenizer=tokenizer, device="cpu"
        )

    def labels(self, texts: Sequence[str]) -> list[str]:
        answers = self._pipeline(list(texts), batch_size=len(texts), truncation=True)
        return [answer["label"] for answer in answers]

    def logits(self, texts: Sequence[str]) -> list[list[float]]:
        as_they_are = {"top_k": None, "function_to_apply": "none", "truncation": True}
        answers = self._pipeline(list(texts), batch_size=len(texts), **as_they_are)
        return [
            [each["score"] for each in sorted(answer, key=lambda each: self._places[each["label"]])]
            for answer in answers
        ]


def load(folder: Path, kind: str) -> Pipeline:
    checkpoint = folder / "checkpoint"
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    model: Any = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=dtype)
    if kind == "int8":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch.ao.quantization import quantize_dynamic  # noqa: PLC0415 - warns when imported

            model = quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)  # type: ignore[no-untyped-call]
    return Pipeline(model, AutoTokenizer.from_pretrained(checkpoint))


if __name__ == "__main__":
    serve(load)
