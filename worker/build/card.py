"""The model card: it says for people what a manifest says for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.evaluation.quality import comparison_table
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
    texts = f"On `{quality.file}`, {quality.int8.texts} texts."
    return f"## Quality\n\n{texts}\n\n{comparison_table(quality)}"


def _training(training: dict[str, object] | None) -> str:
    options = training.get("options") if training else None
    if not isinstance(options, dict):
        return ""
    rows = [f"| {name} | {value} |" for name, value in options.items() if name != "form"]
    return "\n".join(["## Training", "", "| setting | value |", "|---|---|", *rows])
