"""Measures a model on labelled texts: a model folder as it runs, or a checkpoint in fp32."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.errors import ConfigurationError, ExampleFileError
from worker.evaluation.examples import Example, ExampleFormat, read_examples
from worker.evaluation.quality import measure
from worker.inference.artifact import MANIFEST_FILE
from worker.inference.classifier import Classifier

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from worker.inference.artifact import Quality


def evaluate(model: Path, path: Path, form: ExampleFormat) -> Quality:
    """Measure a model folder, or a checkpoint's, on a file of labelled texts.

    Raises:
        ArtifactError: the folder is neither a model nor a checkpoint, or is damaged.
        ConfigurationError: the folder is a checkpoint, and the extra `build` is not installed.
        ExampleFileError: the file cannot be used, or has labels that the model does not have.

    """
    examples = read_examples(path, form)
    if (model / MANIFEST_FILE).exists() or not (model / "config.json").exists():
        classifier = Classifier.load(model)
        labels: Sequence[str] = classifier.artifact.manifest.labels
        check_labels(path, examples, labels)
        results = classifier.classify([example.text for example in examples])
        given = [set(result.labels) for result in results]
    else:
        labels, given = _with_checkpoint(model, path, examples)
    return measure(labels, [example.labels for example in examples], given)


def check_labels(path: Path, examples: Sequence[Example], labels: Sequence[str]) -> None:
    """Check that a model has all labels of a file.

    Raises:
        ExampleFileError: it lacks some; the error names them.

    """
    unknown = {label for example in examples for label in example.labels} - set(labels)
    if unknown:
        raise ExampleFileError(
            f"{path} has labels that the model does not have: {', '.join(sorted(unknown))}",
            f"the model's are {', '.join(labels)}",
        )


def _with_checkpoint(
    model: Path, path: Path, examples: Sequence[Example]
) -> tuple[Sequence[str], list[set[str]]]:
    try:
        from worker.build.checkpoint import Checkpoint  # noqa: PLC0415 - needs the extra
    except ImportError:
        raise ConfigurationError(
            f"{model} is a checkpoint, which needs torch",
            "install the extra: pip install '.[build]'",
        ) from None
    checkpoint = Checkpoint.load(model)
    check_labels(path, examples, checkpoint.labels)
    scores = checkpoint.scores([example.text for example in examples])
    return checkpoint.labels, checkpoint.decide(scores)
