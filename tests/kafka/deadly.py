"""`worker run` in which one text kills the process, as a fault in native code would."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

from worker import assembly, cli
from worker.inference.classifier import Classification, Classifier

if TYPE_CHECKING:
    from collections.abc import Sequence

KILLER = "a text that kills"


class DeadlyClassifier(Classifier):
    """Dies of one text."""

    def classify(self, texts: Sequence[str]) -> list[Classification]:
        if KILLER in texts:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().classify(texts)


if __name__ == "__main__":
    setattr(assembly, "Classifier", DeadlyClassifier)  # noqa: B010 - mypy knows it as imported
    sys.exit(cli.main(sys.argv[1:]))
