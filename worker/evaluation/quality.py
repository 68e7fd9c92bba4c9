"""How good a model's labels are: measured on labelled texts, and printed for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.inference.artifact import LabelQuality, Quality

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

    from worker.inference.artifact import MeasuredQuality


def measure(
    names: Sequence[str], truth: Sequence[AbstractSet[str]], given: Sequence[AbstractSet[str]]
) -> Quality:
    """Compare the labels given with the true ones, text by text; there is one text at least.

    F1 is 2 TP / (2 TP + FP + FN), and 0 where that is 0 / 0. Macro F1 is the mean over `names`;
    micro F1 counts the decisions on all labels together (van Rijsbergen, Information Retrieval,
    1979, chapter 7).
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


def quality_table(quality: Quality) -> str:
    """Return the quality of one model as a table in plain text, a line for each label."""
    width = max(len(name) for name in [*quality.labels, "label"])
    lines = [f"{'label':<{width}}  precision  recall      F1  support"]
    lines += [
        f"{name:<{width}}  {q.precision:9.3f}  {q.recall:6.3f}  {q.f1:6.3f}  {q.support:7d}"
        for name, q in quality.labels.items()
    ]
    lines.append(
        f"\n{quality.texts} texts: accuracy {quality.accuracy:.4f}, "
        f"macro F1 {quality.macro_f1:.4f}, micro F1 {quality.micro_f1:.4f}"
    )
    return "\n".join(lines)


def comparison_table(measured: MeasuredQuality) -> str:
    """Return the quality of fp32 and int8 side by side, as a table in Markdown."""
    fp32, int8 = measured.fp32, measured.int8
    lines = [
        "| | fp32 | int8 |",
        "|---|---|---|",
        f"| macro F1 | {fp32.macro_f1:.4f} | {int8.macro_f1:.4f} |",
        f"| micro F1 | {fp32.micro_f1:.4f} | {int8.micro_f1:.4f} |",
        f"| accuracy | {fp32.accuracy:.4f} | {int8.accuracy:.4f} |",
        f"| single decisions that agree | | {measured.decision_agreement:.2%} |",
        f"| label sets that agree | | {measured.label_set_agreement:.2%} |",
    ]
    lines += [
        f"| F1 {label} | {fp32.labels[label].f1:.4f} | {q.f1:.4f} |"
        for label, q in int8.labels.items()
    ]
    return "\n".join(lines)
