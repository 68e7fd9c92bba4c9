"""Decision thresholds, chosen on labelled texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GRID = np.round(np.arange(0.05, 0.951, 0.01), 2)
_NEIGHBOURS = 2


def choose_thresholds(scores: NDArray[np.float32], truth: NDArray[np.bool_]) -> list[float]:
    """Return the threshold that gives each label its best F1; both shapes [texts, labels].

    Best is the mean F1 over a threshold and two neighbours on each side, a hundredth apart: one
    fitted to the last text of a rare label would not hold on other texts, nor in int8.
    """
    return [_choose(scores[:, label], truth[:, label]) for label in range(scores.shape[1])]


def _choose(scores: NDArray[np.float32], truth: NDArray[np.bool_]) -> float:
    given = scores[None, :] >= _GRID[:, None]
    hits = (given & truth).sum(axis=1)
    f1 = 2 * hits / np.maximum(given.sum(axis=1) + truth.sum(), 1)
    width = 2 * _NEIGHBOURS + 1
    smooth = np.convolve(np.pad(f1, _NEIGHBOURS, mode="edge"), np.ones(width) / width, "valid")
    best = np.flatnonzero(smooth >= smooth.max() - 1e-12)
    return float(_GRID[best[len(best) // 2]])
