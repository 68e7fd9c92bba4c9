"""Peer: OpenVINO with its own choice of precision, or in int8 as nncf makes it for transformers.

Its choice is bf16 where the CPU multiplies that. nncf fixes the scales of activations on messages.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import openvino as ov  # type: ignore[import-not-found]  # in this peer's environment

from benchmarks.peers.peer import serve
from benchmarks.peers.tokenized import Labeller, label_names, padded_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

CALIBRATED_ON = 100


def load(folder: Path, kind: str) -> Labeller:
    core, inputs = ov.Core(), padded_inputs(folder)
    model = core.read_model(folder / "plain.onnx")
    if kind == "int8":
        import nncf  # type: ignore[import-not-found]  # noqa: PLC0415 - heavy; in this environment

        texts = json.loads((folder / "texts.json").read_bytes())["distinct"]
        # The last ones, so that most of what is measured was not seen.
        some = nncf.Dataset(texts[-CALIBRATED_ON:], lambda text: inputs([text]))
        kind_of_model = nncf.ModelType.TRANSFORMER
        model = nncf.quantize(model, some, model_type=kind_of_model, subset_size=CALIBRATED_ON)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": 1})

    def run(texts: Sequence[str]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = compiled(inputs(texts))[0]
        return logits

    return Labeller(label_names(folder), run)


if __name__ == "__main__":
    serve(load)
