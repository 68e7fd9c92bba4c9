"""`worker finetune`, `worker prepare` and `worker evaluate`: models of your own, and their quality."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from worker.cli.flags import add_command, mark_as_printing
from worker.errors import ConfigurationError, ExitCode
from worker.terminal.sentences import show

if TYPE_CHECKING:
    from worker.evaluation.examples import ExampleFormat

_BUILD_PACKAGES: Final = ("accelerate", "emoji", "onnx", "safetensors", "torch", "transformers")


def add_evaluate(commands: Any) -> None:
    """Add `worker evaluate`."""
    summary = "measure a model on labelled texts"
    parser = add_command(commands, "evaluate", summary, _evaluate)
    mark_as_printing(parser)
    parser.add_argument(
        "model",
        metavar="MODEL",
        type=Path,
        help="A model folder, which is measured as it runs, or a checkpoint, which is measured in "
        "fp32 and needs the extra `build`.",
    )
    parser.add_argument(
        "file", metavar="F", type=Path, help="The file of labelled texts to measure on."
    )
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    _add_example_format(parser)


def _evaluate(options: argparse.Namespace) -> int:
    import json

    from worker.evaluation.command import evaluate
    from worker.evaluation.quality import quality_table

    quality = evaluate(options.model, options.file, _example_format(options))
    show(json.dumps(quality.model_dump(), indent=2) if options.json else quality_table(quality))
    return ExitCode.DONE


def add_finetune(commands: Any) -> None:
    """Add `worker finetune`."""
    parser = add_command(
        commands,
        "finetune",
        "train a checkpoint on labelled texts (extra `build`)",
        _finetune,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--train", metavar="F", type=Path, required=True, help="The labelled texts to train on."
    )
    parser.add_argument(
        "--dev",
        metavar="F",
        type=Path,
        required=True,
        help="The labelled texts by which the best epoch and the thresholds are chosen.",
    )
    parser.add_argument(
        "-o",
        dest="output",
        metavar="CHECKPOINT",
        type=Path,
        required=True,
        help="The folder that the checkpoint is written to.",
    )
    parser.add_argument(
        "--base",
        default="minilm",
        help="The model to start from: minilm, a checkpoint folder, or the id of one on the "
        "Hugging Face hub.",
    )
    parser.add_argument(
        "--task",
        choices=["auto", "one-of", "several"],
        default="auto",
        help="Whether a text has exactly one label or several; auto takes what the labelled texts "
        "show.",
    )
    parser.add_argument(
        "--emoji",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Give emoji tokens of their own.",
    )
    _add_training(parser)
    _add_example_format(parser)


def _add_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--epochs", type=float, default=3, help="How often training passes over the texts."
    )
    parser.add_argument(
        "--learning-rate", type=float, default=1e-4, help="The learning rate at its peak."
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, help="How many texts are in a step of training."
    )
    parser.add_argument(
        "--weight-decay", type=float, default=0.01, help="The weight decay of AdamW."
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=128,
        help="The number of tokens at which texts are cut in training.",
    )
    parser.add_argument(
        "--patience",
        type=int,
        default=6,
        help="After so many evaluations without a better one training stops; there are two an "
        "epoch.",
    )
    parser.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16", "fp16"],
        default="auto",
        help="The precision of training; auto takes what is fast on this machine.",
    )
    parser.add_argument("--seed", type=int, default=1, help="The seed of everything random.")


def _finetune(options: argparse.Namespace) -> int:
    _need_build_extra()
    from worker.build.training import FinetuneOptions, read_training_data
    from worker.evaluation.quality import quality_table
    from worker.inference.decisions import Task

    training = FinetuneOptions(
        train=options.train,
        dev=options.dev,
        output=options.output,
        form=_example_format(options),
        base=options.base,
        task=Task(options.task) if options.task != "auto" else None,
        emoji=options.emoji,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        weight_decay=options.weight_decay,
        max_tokens=options.max_tokens,
        patience=options.patience,
        precision=options.precision,
        seed=options.seed,
    )
    data = read_training_data(training)
    # Only now, because it loads torch.
    from worker.build.finetune import finetune

    table = quality_table(finetune(training, data))
    show(f"{table}\n\nwrote {options.output}; next: worker prepare {options.output}")
    return ExitCode.DONE


def add_prepare(commands: Any) -> None:
    """Add `worker prepare`."""
    parser = add_command(
        commands,
        "prepare",
        "turn a checkpoint into an int8 model folder (extra `build`)",
        _prepare,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        type=Path,
        help="The folder of a DistilBERT sequence classifier with safetensors weights.",
    )
    parser.add_argument(
        "-o",
        dest="output",
        metavar="MODEL_DIR",
        type=Path,
        required=True,
        help="The folder that the model is written to.",
    )
    parser.add_argument(
        "--name", help="The model's name in outputs. By default it is that of the folder."
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        help="The number of tokens at which texts are cut. By default it is all the model has.",
    )
    parser.add_argument(
        "--calibrate",
        metavar="F",
        type=Path,
        help="Labelled texts (those of training) by which scales of activations are fixed, so that "
        "the model is faster. By default they are computed for each text.",
    )
    parser.add_argument(
        "--eval",
        metavar="F",
        type=Path,
        help="Labelled texts (those of dev) on which the quality gate compares int8 with fp32.",
    )
    gate = parser.add_argument_group(
        "quality gate: nothing is written where int8 strays further from fp32"
    )
    gate.add_argument(
        "--max-f1-loss",
        type=float,
        default=0.3,
        metavar="POINTS",
        help="The points of macro F1 that may be lost.",
    )
    gate.add_argument(
        "--min-agreement",
        type=float,
        default=0.99,
        metavar="SHARE",
        help="The share of single decisions that must agree.",
    )
    gate.add_argument(
        "--max-logit-error",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="How large the differences of the logits may be, as a share of the logits, where --eval is not given.",
    )
    _add_example_format(parser)


def _prepare(options: argparse.Namespace) -> int:
    _need_build_extra()
    from worker.build.prepare import GateLimits, PrepareOptions, prepare

    manifest = prepare(
        PrepareOptions(
            checkpoint=options.checkpoint,
            output=options.output,
            name=options.name,
            max_tokens=options.max_tokens,
            calibrate_on=options.calibrate,
            evaluate_on=options.eval,
            form=_example_format(options),
            limits=GateLimits(options.max_f1_loss, options.min_agreement, options.max_logit_error),
        )
    )
    quality = manifest.quality
    show(f"wrote {options.output}")
    if quality:
        show(
            f"macro F1 {quality.int8.macro_f1:.4f} in int8, {quality.fp32.macro_f1:.4f} in fp32; "
            f"{quality.decision_agreement:.2%} of decisions and "
            f"{quality.label_set_agreement:.2%} of label sets agree"
        )
    return ExitCode.DONE


def _add_example_format(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("labelled texts: files named .jsonl, .csv or .tsv")
    group.add_argument(
        "--text-field", default="text", metavar="FIELD", help="The field that holds the text."
    )
    group.add_argument(
        "--label-field", default="labels", metavar="FIELD", help="The field that holds the labels."
    )
    group.add_argument(
        "--label-names",
        metavar="FILE",
        type=Path,
        help="A file with the names of the labels, one a line. With it the labelled texts have no "
        "header; their lines are a text, a tab, and the numbers of its labels.",
    )


def _example_format(options: argparse.Namespace) -> ExampleFormat:
    from worker.evaluation.examples import ExampleFormat

    return ExampleFormat(options.text_field, options.label_field, options.label_names)


def _need_build_extra() -> None:
    """Raise a ConfigurationError where the packages that building a model needs are missing."""
    from importlib.util import find_spec

    if any(find_spec(name) is None for name in _BUILD_PACKAGES):
        raise ConfigurationError(
            "building a model needs packages that running one does not",
            "install the extra: pip install -c constraints.txt '.[build]'",
        )
