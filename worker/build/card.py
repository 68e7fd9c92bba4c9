"""The model card: what a manifest says, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.inference.decisions import Task

if TYPE_CHECKING:
    from worker.inference.artifact import Manifest, MeasuredQuality


def model_card(manifest: Manifest) -> str:
    """Return a model card in Markdown."""
    one_of = manifest.task is Task.ONE_OF
    sections = [
        f"# {manifest.name}",
        "An int8 DistilBERT that gives a text "
        + ("one of these labels" if one_of else "any number of these labels, maybe none")
        + f"; texts are cut at {manifest.max_tokens} tokens.",
        _labels(manifest),
        _quality(manifest.quality),
        _training(manifest.source.training),
        "Written by `worker prepare`; `manifest.json` holds the same in full.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _labels(manifest: Manifest) -> str:
    rows = [f"| {label} | {manifest.thresholds[label]} |" for label in manifest.labels]
    return "\n".join(["| label | threshold |", "|---|---|", *rows])


def _quality(quality: MeasuredQuality | None) -> str:
    if quality is None:
        return "## Quality\n\nNot measured: prepared without labelled texts."
    lines = [
        "## Quality",
        "",
        f"On `{quality.file}`, {quality.int8.texts} texts.",
        "",
        "| | fp32 | int8 |",
        "|---|---|---|",
        f"| macro F1 | {quality.fp32.macro_f1:.4f} | {quality.int8.macro_f1:.4f} |",
        f"| micro F1 | {quality.fp32.micro_f1:.4f} | {quality.int8.micro_f1:.4f} |",
        f"| accuracy | {quality.fp32.accuracy:.4f} | {quality.int8.accuracy:.4f} |",
        f"| single decisions that agree | | {quality.decision_agreement:.2%} |",
        f"| label sets that agree | | {quality.label_set_agreement:.2%} |",
    ]
    lines += [
        f"| F1 {label} | {quality.fp32.labels[label].f1:.4f} | {figures.f1:.4f} |"
        for label, figures in quality.int8.labels.items()
    ]
    return "\n".join(lines)


def _training(training: dict[str, object] | None) -> str:
    options = training.get("options") if training else None
    if not isinstance(options, dict):
        return ""
    rows = [f"| {name} | {value} |" for name, value in options.items() if name != "form"]
    return "\n".join(["## Training", "", "| setting | value |", "|---|---|", *rows])
