"""`worker run` whose engine stalls once at one text, longer than a worker may be away."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from worker import assembly, cli
from worker.inference.classifier import Classification, Classifier

if TYPE_CHECKING:
    from collections.abc import Sequence

STALLING = "a text that takes its time"


class StallingClassifier(Classifier):
    """Sleeps at one text, while a file is there."""

    def classify(self, texts: Sequence[str]) -> list[Classification]:
        wait = Path(os.environ["STALL_WHILE"])
        while STALLING in texts and wait.exists():
            time.sleep(0.05)
        return super().classify(texts)


if __name__ == "__main__":
    setattr(assembly, "Classifier", StallingClassifier)  # noqa: B010 - mypy knows it as imported
    sys.exit(cli.main(sys.argv[1:]))
