"""Peer: CTranslate2 in int8. It has no classifier for DistilBERT: the head is numpy's, in fp32.

Its converter needs torch and transformers and runs in a process of its own; labelling needs neither.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import ctranslate2  # type: ignore[import-not-found]  # in this peer's environment
import numpy as np
from safetensors.numpy import load_file

from benchmarks.peers.peer import serve
from benchmarks.peers.tokenized import Labeller, label_names, load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def load(folder: Path, kind: str) -> Labeller:
    checkpoint, converted = folder / "checkpoint", folder / f"ctranslate2-{kind}"
    options = ["--model", str(checkpoint), "--output_dir", str(converted), "--quantization", kind]
    converter = str(Path(sys.executable).with_name("ct2-transformers-converter"))
    subprocess.run([converter, *options], check=True)  # noqa: S603 - of this environment
    encoder = ctranslate2.Encoder(str(converted), compute_type=kind, intra_threads=1)
    tokenizer, weights = load_tokenizer(folder), load_file(checkpoint / "model.safetensors")

    def layer(name: str, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        products: NDArray[np.float32] = rows @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        return products

    def run(texts: Sequence[str]) -> NDArray[np.float32]:
        ids = [each.ids for each in tokenizer.encode_batch_fast(texts)]
        first = np.array(encoder.forward_batch(ids).last_hidden_state)[:, 0]
        return layer("classifier", np.maximum(layer("pre_classifier", first), 0))

    return Labeller(label_names(folder), run)


if __name__ == "__main__":
    serve(load)
