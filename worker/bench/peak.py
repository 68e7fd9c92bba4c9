"""The fastest int8 product that onnxruntime has here: what an engine's speed is a share of."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort

from worker.inference.engine import session_options

PEAK_FILE: Final = Path(__file__).with_name("peak.onnx")
# Weights of this shape stay in a core's own cache.
PEAK_SHAPE: Final = (768, 768)
_ROWS: Final = 256
_ROUNDS: Final = 50


def peak_gops() -> float:
    """Return the speed of onnxruntime's int8 product where that is fastest, in one thread."""
    session = ort.InferenceSession(PEAK_FILE, session_options(), ["CPUExecutionProvider"])
    depth, columns = PEAK_SHAPE
    rows = np.random.default_rng(1).integers(0, 256, (_ROWS, depth), dtype=np.uint8)
    seconds = []
    for _ in range(_ROUNDS):
        begun = time.perf_counter()
        session.run(None, {"activations": rows})
        seconds.append(time.perf_counter() - begun)
    return 2 * _ROWS * depth * columns / min(seconds) / 1e9
