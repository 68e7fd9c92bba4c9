"""Label chat messages with an int8 DistilBERT on CPU: from Kafka, from files, or from Python."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.inference.classifier import Classification, Classifier

__all__ = ["Classification", "Classifier"]

# onnxruntime would tell its maker of machine, model and errors, and it looks once, when it is
# imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def __getattr__(name: str) -> object:
    # The engine's libraries take a third of a second to import: only where a model is wanted.
    if name in __all__:
        from worker.inference import classifier  # noqa: PLC0415

        return getattr(classifier, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
