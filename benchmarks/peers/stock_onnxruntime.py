"""Peer: onnxruntime as it comes, the model as torch exports it, in fp32 or quantized dynamically."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnxruntime as ort

from benchmarks.peers.peer import serve
from benchmarks.peers.tokenized import Labeller, label_names, padded_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


def load(folder: Path, kind: str) -> Labeller:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(folder / f"{kind}.onnx", options, ["CPUExecutionProvider"])
    inputs = padded_inputs(folder)

    def run(texts: Sequence[str]) -> NDArray[np.float32]:
        logits: NDArray[np.float32]
        (logits,) = session.run(None, inputs(texts))
        return logits

    return Labeller(label_names(folder), run)


if __name__ == "__main__":
    serve(load)
