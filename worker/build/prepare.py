"""From a checkpoint to an artifact: int8 graph, tokenizer, manifest, model card, quality gate."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import ValidationError

from worker.build.card import model_card
from worker.build.checkpoint import Checkpoint, encode
from worker.build.digests import file_sha256
from worker.build.graph import largest_normalized, write_graph
from worker.defaults import TOKEN_BUDGET
from worker.errors import ConfigurationError, QualityGateError
from worker.evaluation.command import check_labels
from worker.evaluation.examples import ExampleFormat, read_examples
from worker.evaluation.quality import measure
from worker.inference.artifact import (
    FILES,
    MANIFEST_FILE,
    TOKENIZER_FILE,
    Artifact,
    Calibration,
    Manifest,
    MeasuredQuality,
    Provenance,
    Shape,
)
from worker.inference.classifier import Classifier
from worker.inference.decisions import Task
from worker.inference.engine import load_model, open_engine
from worker.inference.tokens import TextTokenizer, cut_batches

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Two special tokens, and one of the text.
_FEWEST_TOKENS = 3
# On these texts int8 is compared with fp32 where no labelled file is given.
_BUILT_IN_TEXTS = (
    "gg wp",
    "lol that was close",
    "why would you do that??",
    "anyone up for another round tonight",
    "I really miss how this place used to be, everybody knew each other by name",
    "THIS IS THE BEST DAY EVER",
    "ok",
    "the new map is confusing, but I guess we will get used to it after a week or two",
)


@dataclass(frozen=True, slots=True)
class GateLimits:
    """How far int8 may stray from fp32.

    `f1_points` is macro F1 lost, in points of 100; `agreement` the share of single decisions that
    are the same; `logit_error`, used without labelled texts, the norm of the differences of all
    logits over the norm of the logits.
    """

    f1_points: float = 0.3
    agreement: float = 0.99
    logit_error: float = 0.1


@dataclass(frozen=True, slots=True)
class PrepareOptions:
    """What to prepare, and what to measure it on; a `max_tokens` of None is all the model has.

    With `calibrate_on`, labelled texts such as it was trained on, the scales of activations after
    normalizations are fixed to what these texts need.
    """

    checkpoint: Path
    output: Path
    name: str | None = None
    max_tokens: int | None = None
    calibrate_on: Path | None = None
    evaluate_on: Path | None = None
    form: ExampleFormat = field(default_factory=ExampleFormat)
    limits: GateLimits = field(default_factory=GateLimits)


def prepare(options: PrepareOptions) -> Manifest:
    """Write the artifact of a checkpoint, or nothing where it fails the gate.

    Raises:
        ConfigurationError: the output exists, or the token limit is more than the model has.
        QualityGateError: int8 strays too far from fp32.

    """
    if options.output.exists():
        raise ConfigurationError(f"{options.output} exists", "remove it, or name another -o")
    checkpoint = Checkpoint.load(options.checkpoint)
    most = checkpoint.max_tokens
    max_tokens = most if options.max_tokens is None else options.max_tokens
    if not _FEWEST_TOKENS <= max_tokens <= most:
        raise ConfigurationError(
            f"the token limit {max_tokens} is not from {_FEWEST_TOKENS} to {most}, the checkpoint's"
        )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.output.parent, prefix=".prepare-") as name:
        folder = Path(name) / "model"
        folder.mkdir()
        manifest = _write_model(options, checkpoint, max_tokens, folder)
        artifact = load_model(folder)
        if options.evaluate_on:
            quality = _measure(options, options.evaluate_on, checkpoint, artifact)
            manifest = manifest.model_copy(update={"quality": quality})
            _write_manifest(folder, manifest)
        else:
            _compare_logits(options.limits, checkpoint, artifact)
        (folder / "README.md").write_text(model_card(manifest), encoding="utf-8")
        shutil.move(folder, options.output)
    return manifest


def _write_model(
    options: PrepareOptions, checkpoint: Checkpoint, max_tokens: int, folder: Path
) -> Manifest:
    config = checkpoint.model.config
    weights = {name: value.numpy() for name, value in checkpoint.model.state_dict().items()}
    positions = "distilbert.embeddings.position_embeddings.weight"
    weights[positions] = weights[positions][:max_tokens]
    write_graph(folder, weights, heads=config.n_heads)
    calibration = None
    if options.calibrate_on:
        texts = [example.text for example in read_examples(options.calibrate_on, options.form)]
        encodings = encode(checkpoint.tokenizer, texts, max_tokens)
        batches = cut_batches(encodings, TOKEN_BUDGET)
        normalized = largest_normalized(folder, (token_ids for _, token_ids in batches))
        write_graph(folder, weights, heads=config.n_heads, normalized=normalized)
        path = options.calibrate_on
        calibration = Calibration(file=path.name, sha256=file_sha256(path), texts=len(texts))
    checkpoint.tokenizer.save(str(folder / TOKENIZER_FILE), pretty=False)
    training = options.checkpoint / "training.json"
    content = {
        "schema_version": 1,
        "name": options.name or options.output.name,
        "task": checkpoint.task,
        "labels": checkpoint.labels,
        "thresholds": dict(zip(checkpoint.labels, checkpoint.thresholds, strict=True)),
        "max_tokens": max_tokens,
        "shape": Shape(
            layers=config.n_layers, dim=config.dim, inner=config.hidden_dim, heads=config.n_heads
        ),
        "files": {name: file_sha256(folder / name) for name in FILES},
        "source": Provenance(
            checkpoint=options.checkpoint.name,
            weights_sha256=file_sha256(options.checkpoint / "model.safetensors"),
            training=json.loads(training.read_bytes()) if training.exists() else None,
            calibration=calibration,
        ),
        "quality": None,
    }
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"])
        raise ConfigurationError(
            f"name, labels or thresholds cannot stand in a manifest (at {where})",
            "a name is letters, digits, '.', '_' and '-'; labels are two or more, their thresholds "
            "from 0 to 1",
        ) from None
    _write_manifest(folder, manifest)
    return manifest


def _measure(
    options: PrepareOptions, path: Path, checkpoint: Checkpoint, artifact: Artifact
) -> MeasuredQuality:
    """Measure checkpoint and artifact on a labelled file, and compare the difference with the limits."""
    examples = read_examples(path, options.form)
    check_labels(path, examples, checkpoint.labels)
    texts = [example.text for example in examples]
    truth = [example.labels for example in examples]
    scores = checkpoint.scores(texts, artifact.manifest.max_tokens)
    results = Classifier(artifact).classify(texts)
    int8_scores = np.array([list(result.scores.values()) for result in results], dtype=np.float32)
    before, after = checkpoint.decide(scores), [set(result.labels) for result in results]
    fp32 = measure(checkpoint.labels, truth, before)
    int8 = measure(checkpoint.labels, truth, after)
    agreement = _decision_agreement(checkpoint, scores, int8_scores)
    same_sets = sum(b == a for b, a in zip(before, after, strict=True)) / len(texts)
    limits = options.limits
    lost = 100 * (fp32.macro_f1 - int8.macro_f1)
    if lost > limits.f1_points or agreement < limits.agreement:
        raise QualityGateError(
            f"int8 strays too far from fp32 on {path.name}: macro F1 falls by {lost:.2f} points "
            f"(limit {limits.f1_points}), {agreement:.2%} of decisions agree "
            f"(limit {limits.agreement:.2%}), {same_sets:.2%} of label sets",
            "nothing was written",
        )
    return MeasuredQuality(
        file=path.name,
        sha256=file_sha256(path),
        fp32=fp32,
        int8=int8,
        decision_agreement=agreement,
        label_set_agreement=same_sets,
    )


def _decision_agreement(
    checkpoint: Checkpoint, fp32: NDArray[np.float32], int8: NDArray[np.float32]
) -> float:
    """Return the fraction of single decisions that agree: of each label of each text, or the best for one-of."""
    if checkpoint.task is Task.ONE_OF:
        return float((fp32.argmax(axis=1) == int8.argmax(axis=1)).mean())
    thresholds = np.array(checkpoint.thresholds)
    return float(((fp32 >= thresholds) == (int8 >= thresholds)).mean())


def _compare_logits(limits: GateLimits, checkpoint: Checkpoint, artifact: Artifact) -> None:
    fp32 = checkpoint.logits(_BUILT_IN_TEXTS, artifact.manifest.max_tokens)
    engine = open_engine(artifact)
    tokens = TextTokenizer(artifact).encode(_BUILT_IN_TEXTS)
    int8 = np.concatenate([engine.run([ids]) for ids, _ in tokens])
    error = float(np.linalg.norm(int8 - fp32) / np.linalg.norm(fp32))
    if not error <= limits.logit_error:
        raise QualityGateError(
            f"int8 strays too far from fp32: the logits of built-in texts differ by {error:.1%} "
            f"(limit {limits.logit_error:.1%})",
            "nothing was written; measure real quality with --eval",
        )


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    content = manifest.model_dump_json(indent=2) + "\n"
    (folder / MANIFEST_FILE).write_text(content, encoding="utf-8")
