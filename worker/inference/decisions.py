"""From logits to scores, and from scores to labels."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_FLOAT32: Final = struct.Struct("=f")


class Task(StrEnum):
    """How many of its labels a text can have."""

    ONE_OF = "one-of"
    SEVERAL = "several"


class Scores(Mapping[str, float]):
    """The score of each label, in the model's order: a mapping that cannot be changed.

    Attributes:
        names: the labels.
        packed: the scores as native float32, end to end; this is what takes little memory.

    Example:
        >>> from worker import Classifier
        >>> (result,) = Classifier.load().classify(["I love this so much"])
        >>> list(result.scores)
        ['anger', 'disgust', 'fear', 'joy', 'neutral', 'sadness', 'surprise']
        >>> max(result.scores, key=result.scores.get)
        'joy'
        >>> 0.9 < dict(result.scores)["joy"] < 1
        True

    """

    __slots__ = ("names", "packed")

    def __init__(self, names: tuple[str, ...], packed: bytes) -> None:
        """Take the labels, and their scores in the same order."""
        self.names = names
        self.packed = packed

    def __getitem__(self, name: str) -> float:
        """Return a label's score, from 0 to 1.

        Raises:
            KeyError: the model has no such label.

        """
        try:
            index = self.names.index(name)
        except ValueError:
            raise KeyError(name) from None
        score: float
        (score,) = _FLOAT32.unpack_from(self.packed, _FLOAT32.size * index)
        return score

    def __iter__(self) -> Iterator[str]:
        """Iterate over the labels, in the model's order."""
        return iter(self.names)

    def __len__(self) -> int:
        """Return the number of labels."""
        return len(self.names)

    def __repr__(self) -> str:
        """Return what a dict of the same scores would show."""
        return repr(dict(self))


def scores_of(task: Task, logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn the logits of one text, shape [labels], into scores in [0, 1], same shape.

    One-of takes the softmax, several the logistic function. Both are computed one number at a time
    in double precision, because vector code may round differently at different places of an
    array, and a score must not depend on what stands beside it.
    """
    values = [float(logit) for logit in logits]
    if task is Task.SEVERAL:
        scores = [_logistic(value) for value in values]
    else:
        largest = max(values)
        powers = [math.exp(value - largest) for value in values]
        total = math.fsum(powers)
        scores = [power / total for power in powers]
    return np.array(scores, dtype=np.float32)


def decide(
    task: Task, names: Sequence[str], scores: Sequence[float], thresholds: Sequence[float]
) -> tuple[str, ...]:
    """Return the labels whose score reaches its threshold, in the model's order; maybe none.

    For one-of, only the label with the highest score can be given.
    """
    if task is Task.ONE_OF:
        best = max(range(len(scores)), key=scores.__getitem__)
        return (names[best],) if scores[best] >= thresholds[best] else ()
    return tuple(
        name
        for name, score, threshold in zip(names, scores, thresholds, strict=True)
        if score >= threshold
    )


def _logistic(value: float) -> float:
    # Both branches keep the exponent at 0 or below, where exp cannot overflow.
    if value >= 0:
        return 1.0 / (1.0 + math.exp(-value))
    power = math.exp(value)
    return power / (1.0 + power)
