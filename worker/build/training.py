"""What to train on and how. It is read and checked before torch is loaded, which takes half a minute."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from worker.errors import ConfigurationError, ExampleFileError
from worker.evaluation.command import check_labels
from worker.evaluation.examples import Example, ExampleFormat, read_examples
from worker.inference.decisions import Task

if TYPE_CHECKING:
    from pathlib import Path

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True, slots=True)
class FinetuneOptions:
    """What to train on, from where, and how.

    `base` is `minilm`, a local checkpoint folder, or a hub id; `precision` is auto, fp32, bf16 or
    fp16; `patience` counts evaluations (two an epoch) without a better macro F1.
    """

    train: Path
    dev: Path
    output: Path
    form: ExampleFormat = field(default_factory=ExampleFormat)
    base: str = "minilm"
    task: Task | None = None
    emoji: bool = True
    epochs: float = 3
    learning_rate: float = 1e-4
    batch_size: int = 32
    weight_decay: float = 0.01
    max_tokens: int = 128
    patience: int = 6
    precision: str = "auto"
    seed: int = 1


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Labelled texts for training and for dev; `labels` are sorted, and neither has any other."""

    task: Task
    labels: list[str]
    train: list[Example]
    dev: list[Example]


def read_training_data(options: FinetuneOptions) -> TrainingData:
    """Check options and read both files.

    Raises:
        ConfigurationError: the output exists, or an option is out of range.
        ExampleFileError: a file of labelled texts cannot be used.

    """
    _check(options)
    train = read_examples(options.train, options.form)
    dev = read_examples(options.dev, options.form)
    labels = sorted({label for example in train for label in example.labels})
    one_each = all(len(example.labels) == 1 for example in train)
    task = options.task or (Task.ONE_OF if one_each else Task.SEVERAL)
    if len(labels) < 2:  # noqa: PLR2004 - one label leaves nothing to decide
        raise ExampleFileError(f"{options.train} holds fewer than two labels")
    check_labels(options.dev, dev, labels)
    if task is Task.ONE_OF and any(len(example.labels) != 1 for example in [*train, *dev]):
        raise ExampleFileError(
            "the task is one-of, but some texts have no label or several", "use --task several"
        )
    return TrainingData(task, labels, train, dev)


def _check(options: FinetuneOptions) -> None:
    if options.output.exists():
        raise ConfigurationError(f"{options.output} exists", "remove it, or name another -o")
    for name in ("epochs", "learning_rate", "batch_size", "max_tokens", "patience"):
        if not 0 < getattr(options, name) < math.inf:
            raise ConfigurationError(f"{name} must be a number of more than 0")
    if not 0 <= options.weight_decay < math.inf:
        raise ConfigurationError("weight_decay must be a number of 0 or more")
    if options.precision not in PRECISIONS:
        raise ConfigurationError(f"the precision must be one of {', '.join(PRECISIONS)}")
