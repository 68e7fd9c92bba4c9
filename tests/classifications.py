"""Classifications as a model gives them, with scores that a test chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from worker.inference.classifier import Classification
from worker.inference.decisions import Scores

if TYPE_CHECKING:
    from collections.abc import Mapping


def classified(scores: Mapping[str, float], *labels: str) -> Classification:
    """Return what gives these labels, with these scores as float32."""
    packed = np.array(list(scores.values()), dtype=np.float32).tobytes()
    return Classification(labels, Scores(tuple(scores), packed), truncated=False)
