"""Label chat messages with an int8 DistilBERT on CPU: from Kafka, from files, or from Python.

>>> from worker import Classifier
>>> with Classifier.load() as classifier:
...     for result in classifier.classify(["gg wp", "I love this so much"]):
...         print(result.labels, result.scores["joy"] > 0.9)
('neutral',) False
('joy',) True
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from worker.errors import ArtifactError, ConfigurationError, EngineError, WorkerError

if TYPE_CHECKING:
    from worker.inference.classifier import Classification, Classifier, Counts
    from worker.inference.decisions import Scores

    __version__: str

__all__ = [
    "ArtifactError",
    "Classification",
    "Classifier",
    "ConfigurationError",
    "Counts",
    "EngineError",
    "Scores",
    "WorkerError",
]

# onnxruntime would report machine, model and errors to its maker. It reads this variable only
# once, when it is imported, so the variable must be set before.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def __getattr__(name: str) -> object:
    """Import what is slow to import only when it is asked for.

    The engine's libraries take a third of a second, and `worker --help` needs none of them.
    """
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 - takes 40 ms to import

        return version("chat-label-worker")
    if name in __all__:
        from worker.inference import classifier  # noqa: PLC0415 - takes 300 ms to import

        return getattr(classifier, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
