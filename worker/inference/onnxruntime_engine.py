"""The engine by onnxruntime: one session in one thread, for texts of any length without padding.

It runs the graph of the artifact as it is: the reference for the native engine, and its stand-in.
"""

from __future__ import annotations

import os
from functools import lru_cache
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import onnxruntime as ort

from worker.errors import ArtifactError, EngineError
from worker.inference.artifact import GRAPH_FILE, WEIGHTS_FILE
from worker.inference.cpu import cpu_kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from worker.inference.artifact import Artifact

# These are slower than the plain nodes that they replace (docs/design.md, "Engine").
_SLOW_FUSIONS: Final = ["SkipLayerNormFusion", "BiasGeluFusion"]
# Errors are raised anyway; printed, they would show the names of nodes as the graph has them.
_FATAL_ONLY: Final = 4
# The inputs of a graph, with their shapes; `packed` makes them.
INPUTS: Final[dict[str, list[str | int]]] = {
    "input_ids": ["tokens"],
    "position_ids": ["tokens"],
    "groups": ["groups", 2],
}
PROBE_FILE: Final = Path(__file__).with_name("saturation.onnx")
PROBE_SHAPE: Final = (64, 16)


@lru_cache(maxsize=1)
def int8_products_saturate() -> bool:
    """Return whether onnxruntime's u8 x s8 products clip their 16-bit sums on this CPU.

    They do on x86 without VNNI or AMX (onnxruntime's quantization guide). The largest numbers there
    are get multiplied to see it, because a CPU or an emulator may report what it does not have.
    """
    session = ort.InferenceSession(PROBE_FILE, session_options(), ["CPUExecutionProvider"])
    rows, _ = PROBE_SHAPE
    (product,) = session.run(None, {"activations": np.full((4, rows), 255, dtype=np.uint8)})
    return bool((product != rows * 255 * 127).any())


class OnnxruntimeEngine:
    """A loaded model; use it from one thread."""

    def __init__(self, artifact: Artifact, *, exact_products: bool | None = None) -> None:
        """Load the model of an artifact.

        With `exact_products`, onnxruntime takes its slower u8 x u8 path, whose sums never clip. By
        default it does so where the u8 x s8 products of this CPU clip.

        Raises:
            ArtifactError: the graph does not load, or does not fit the manifest.

        """
        self.exact_products = int8_products_saturate() if exact_products is None else exact_products
        self._labels = len(artifact.manifest.labels)
        path = artifact.folder / GRAPH_FILE
        graph, weights = artifact.read(GRAPH_FILE), artifact.read(WEIGHTS_FILE)
        try:
            self._session = open_session(graph, weights, exact_products=self.exact_products)
        except Exception:  # noqa: BLE001 - onnxruntime's errors share no base, and quote paths
            raise ArtifactError(f"onnxruntime {ort.__version__} cannot load {path}") from None
        self._check_shape(artifact)

    @property
    def identity(self) -> str:
        """Do as `Engine` says."""
        # On another kind of CPU, or with another onnxruntime, a score may differ in its last place.
        return f"onnxruntime {ort.__version__} {cpu_kind()} {self.exact_products}"

    @property
    def description(self) -> str:
        """Do as `Engine` says."""
        products = "u8 by u8, which is slower" if self.exact_products else "u8 by s8"
        return f"onnxruntime, {products}"

    def run(self, batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Return the logits, shape [batch, labels], of texts that are given by their token ids.

        Texts of equal length should stand together: the fewer stretches of one length a batch has,
        the faster it is.

        Raises:
            EngineError: the batch could not be scored, or a logit is not finite.

        """
        try:
            logits: NDArray[np.float32]
            (logits,) = self._session.run(["logits"], packed(batch))
        except Exception:  # noqa: BLE001 - onnxruntime's errors share no base
            tokens = sum(len(ids) for ids in batch)
            raise EngineError(
                f"onnxruntime failed on a batch of {len(batch)} texts, {tokens} tokens in all"
            ) from None
        if logits.shape != (len(batch), self._labels):
            raise EngineError("the model does not give a logit for each text and label")
        if not np.isfinite(logits).all():
            raise EngineError("the model's scores are not finite")
        return logits

    def _check_shape(self, artifact: Artifact) -> None:
        path = artifact.folder / GRAPH_FILE
        inputs = [value.name for value in self._session.get_inputs()]
        if inputs != list(INPUTS):
            raise ArtifactError(
                f"{path} is not a graph of this version of the worker: it takes "
                f"{', '.join(inputs)}, not {', '.join(INPUTS)}",
                "prepare the model anew",
            )
        outputs = [
            (value.name, value.type, value.shape[-1:]) for value in self._session.get_outputs()
        ]
        labels = self._labels
        if outputs != [("logits", "tensor(float)", [labels])]:
            raise ArtifactError(
                f"{path} does not give {labels} logits, as the manifest's labels need",
                "prepare the model anew",
            )


def packed(batch: Sequence[Sequence[int]]) -> dict[str, NDArray[np.int64]]:
    """Return a graph's inputs for texts that are given by their token ids.

    The tokens of all texts stand one after another. `groups`, shape [stretches, 2], has for each
    stretch of texts of one length the number of texts and that length.
    """
    lengths = [len(ids) for ids in batch]
    groups = [(sum(1 for _ in same), length) for length, same in groupby(lengths)]
    return {
        "input_ids": np.fromiter(chain.from_iterable(batch), np.int64),
        "position_ids": np.fromiter(chain.from_iterable(map(range, lengths)), np.int64),
        "groups": np.array(groups, dtype=np.int64),
    }


def open_session(graph: bytes, weights: bytes, *, exact_products: bool) -> ort.InferenceSession:
    """Load a graph as the engine runs it: in one thread, without the fusions that are slower.

    `weights` is the content of `weights.bin`, the only file that a graph may name: onnxruntime opens
    none itself, and fails where a graph names another.
    """
    options = session_options()
    # Some kinds of constants are looked for in a folder all the same; there is none.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", os.devnull
    )
    options.add_external_initializers_from_files_in_memory(
        [WEIGHTS_FILE], [weights], [len(weights)]
    )
    if exact_products:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(
        graph, options, providers=["CPUExecutionProvider"], disabled_optimizers=_SLOW_FUSIONS
    )


def session_options() -> ort.SessionOptions:
    """Return session options for one thread, which does not spin while it waits."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Memory is planned for each shape of the inputs, and nearly every batch has a new shape: the
    # plans would fill memory and seldom be used again.
    options.enable_mem_pattern = False
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = _FATAL_ONLY
    return options
