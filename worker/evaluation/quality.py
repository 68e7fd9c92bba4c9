"""How good a model's labels are: accuracy, precision, recall, F1."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet


@dataclass(frozen=True, slots=True)
class LabelQuality:
    """One label: precision, recall and F1 in [0, 1]; support is the texts that have it."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class Quality:
    """A model on a file: accuracy counts texts whose whole set of labels is right."""

    texts: int
    accuracy: float
    macro_f1: float
    micro_f1: float
    labels: dict[str, LabelQuality]

    def as_dict(self) -> dict[str, object]:
        """Return plain numbers, ready for JSON."""
        return asdict(self)

    def table(self) -> str:
        """Return the figures as lines for people."""
        width = max(len(name) for name in [*self.labels, "label"])
        lines = [f"{'label':<{width}}  precision  recall      F1  support"]
        lines += [
            f"{name:<{width}}  {q.precision:9.3f}  {q.recall:6.3f}  {q.f1:6.3f}  {q.support:7d}"
            for name, q in self.labels.items()
        ]
        lines.append(
            f"\n{self.texts} texts: accuracy {self.accuracy:.4f}, "
            f"macro F1 {self.macro_f1:.4f}, micro F1 {self.micro_f1:.4f}"
        )
        return "\n".join(lines)


def measure(
    names: Sequence[str], truth: Sequence[AbstractSet[str]], given: Sequence[AbstractSet[str]]
) -> Quality:
    """Compare the labels given with the true ones, text by text.

    F1 is 2 TP / (2 TP + FP + FN), 0 where that is 0 / 0; macro is the mean over `names`, micro
    counts all decisions together (van Rijsbergen, Information Retrieval, 1979, chapter 7).
    """
    labels = {}
    sums = [0, 0, 0]
    for name in names:
        hits = sum(name in t and name in g for t, g in zip(truth, given, strict=True))
        found = sum(name in g for g in given)
        support = sum(name in t for t in truth)
        labels[name] = LabelQuality(
            precision=_ratio(hits, found),
            recall=_ratio(hits, support),
            f1=_ratio(2 * hits, found + support),
            support=support,
        )
        sums = [sums[0] + hits, sums[1] + found, sums[2] + support]
    return Quality(
        texts=len(truth),
        accuracy=_ratio(
            sum(set(t) == set(g) for t, g in zip(truth, given, strict=True)), len(truth)
        ),
        macro_f1=_ratio(sum(quality.f1 for quality in labels.values()), len(labels)),
        micro_f1=_ratio(2 * sums[0], sums[1] + sums[2]),
        labels=labels,
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
