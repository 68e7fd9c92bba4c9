"""Which engine scores texts: our own, or onnxruntime's where ours cannot be had.

Both are bit-exact: the logits of a text are the same bytes whatever else is in its batch. Ours gives the
same bytes on every CPU; onnxruntime's depend on its version and the kind of CPU.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from worker.errors import ConfigurationError
from worker.inference.artifact import load_artifact
from worker.inference.native_engine import (
    COMPUTATION,
    NativeEngine,
    available_backends,
    why_not_native,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from worker.inference.artifact import Artifact

EngineKind: TypeAlias = Literal["auto", "native", "onnxruntime"]


class Engine(Protocol):
    """A loaded model; use it from one thread."""

    @property
    def identity(self) -> str:
        """Return what decides the last bit of a score beside the model: what caches keep apart by."""

    @property
    def description(self) -> str:
        """Return how it computes, for people."""

    def run(self, batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Return the logits, shape [batch, labels], of texts that are given by their token ids.

        Texts of equal length should stand together: the fewer stretches of one length a batch has,
        the faster it is.

        Raises:
            EngineError: the batch could not be scored, or a score is not finite.

        """


def load_model(
    folder: Path, thresholds: Mapping[str, float] | None = None, kind: EngineKind = "auto"
) -> Artifact:
    """Verify a model folder, and decide which engine scores with it on this machine.

    Raises:
        ArtifactError: a file is missing, altered or not understood.
        ConfigurationError: a threshold does not fit the model, or the engine cannot be had.

    """
    artifact = load_artifact(folder, thresholds)
    if kind == "onnxruntime":
        return artifact
    reason = why_not_native(artifact)
    if reason is None:
        return replace(artifact, computation=COMPUTATION)
    if kind == "native":
        raise ConfigurationError(
            f"the native engine cannot be used: {reason}", "set engine.kind to auto or onnxruntime"
        )
    return artifact


def open_engine(artifact: Artifact, backend: str | None = None) -> Engine:
    """Load the engine that was decided on; `backend` forces one of the native engine.

    Raises:
        ArtifactError: the model does not load.
        ConfigurationError: there is no such backend on this machine.

    """
    if artifact.computation == COMPUTATION:
        if backend is not None and backend not in (found := available_backends()):
            raise ConfigurationError(
                f"this machine cannot run the backend {backend}",
                f"set engine.backend to one of {', '.join(found)}, or leave it out",
            )
        return NativeEngine(artifact, backend)
    return _onnxruntime(artifact)


def every_engine(artifact: Artifact) -> list[Engine]:
    """Load every engine and backend that this machine can run a model with, the fastest first.

    Raises:
        ArtifactError: the model does not load.

    """
    backends = available_backends() if artifact.computation == COMPUTATION else []
    return [*(NativeEngine(artifact, backend) for backend in backends), _onnxruntime(artifact)]


def _onnxruntime(artifact: Artifact) -> Engine:
    # It takes a tenth of a second and 40 MB, which the native engine does without.
    from worker.inference.onnxruntime_engine import OnnxruntimeEngine  # noqa: PLC0415 - see above

    return OnnxruntimeEngine(artifact)
