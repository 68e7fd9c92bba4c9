"""Preparing writes a whole artifact that is near its checkpoint, or nothing at all."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.build.conftest import LABELS, save_bert, tiny_tokenizer, write_jsonl
from worker.build.checkpoint import Checkpoint, encode
from worker.build.digests import file_sha256
from worker.build.prepare import GateLimits, PrepareOptions, prepare
from worker.cli.entry import main
from worker.errors import ConfigurationError, ExampleFileError, QualityGateError, WorkerError
from worker.inference.artifact import (
    BUILT_IN_MODEL,
    Calibration,
    Manifest,
    load_artifact,
)
from worker.inference.classifier import Classifier
from worker.inference.decisions import Task
from worker.inference.tokens import TextTokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.build.conftest import LabelledFiles, TinyCheckpoint, Trained
    from worker.inference.artifact import Artifact


class Prepared(NamedTuple):
    """A trained checkpoint and what was prepared from it."""

    options: PrepareOptions
    manifest: Manifest


# On sixty texts one decision is a point of macro F1, and CPUs differ in the last place.
LOOSE = GateLimits(f1_points=5, agreement=0.9)


@pytest.fixture(scope="module")
def ready(
    trained: dict[Task, Trained],
    labelled: dict[Task, LabelledFiles],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[Task, Prepared]:
    """Return prepared artifacts of both tasks, measured on dev."""
    runs = {}
    for task, run in trained.items():
        output = tmp_path_factory.mktemp("prepared") / f"{task}-model"
        options = PrepareOptions(
            run.options.output, output, evaluate_on=labelled[task].dev, limits=LOOSE
        )
        runs[task] = Prepared(options, prepare(options))
    return runs


@pytest.fixture(scope="module")
def checkpoint(ready: dict[Task, Prepared]) -> Checkpoint:
    return Checkpoint.load(ready[Task.SEVERAL].options.checkpoint)


@pytest.fixture(scope="module")
def artifact(ready: dict[Task, Prepared]) -> Artifact:
    return load_artifact(ready[Task.SEVERAL].options.output)


@pytest.mark.parametrize("task", Task)
def test_an_artifact_is_whole_and_loads(ready: dict[Task, Prepared], task: Task) -> None:
    options, manifest = ready[task]
    artifact = load_artifact(options.output)
    assert artifact.manifest == manifest
    names = {path.name for path in options.output.iterdir()}
    assert names == {"README.md", "manifest.json", "model.onnx", "weights.bin", "tokenizer.json"}


@pytest.mark.parametrize("task", Task)
def test_nothing_else_is_left(ready: dict[Task, Prepared], task: Task) -> None:
    output = ready[task].options.output
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize("task", Task)
def test_the_manifest_says_what_the_model_is(
    ready: dict[Task, Prepared], trained: dict[Task, Trained], task: Task
) -> None:
    options, manifest = ready[task]
    checkpoint = Checkpoint.load(options.checkpoint)
    assert manifest.schema_version == 1
    assert manifest.name == f"{task}-model"
    assert manifest.task is task
    assert manifest.labels == LABELS
    assert tuple(manifest.thresholds.values()) == checkpoint.thresholds
    assert manifest.max_tokens == 64
    assert manifest.source.checkpoint == trained[task].options.output.name


@pytest.mark.parametrize("task", Task)
def test_the_manifest_says_where_the_model_comes_from(
    ready: dict[Task, Prepared], task: Task
) -> None:
    options, manifest = ready[task]
    training = json.loads((options.checkpoint / "training.json").read_bytes())
    assert manifest.source.weights_sha256 == file_sha256(options.checkpoint / "model.safetensors")
    assert manifest.source.training == training


@pytest.mark.parametrize("task", Task)
def test_the_manifest_says_how_good_the_model_is(
    ready: dict[Task, Prepared], trained: dict[Task, Trained], task: Task
) -> None:
    options, manifest = ready[task]
    assert options.evaluate_on is not None
    quality = manifest.quality
    assert quality is not None
    assert (quality.file, quality.sha256) == (
        options.evaluate_on.name,
        file_sha256(options.evaluate_on),
    )
    assert quality.fp32 == trained[task].quality
    assert quality.int8.macro_f1 >= quality.fp32.macro_f1 - 0.05
    assert quality.decision_agreement >= 0.9
    assert quality.label_set_agreement >= 0.9


def test_scales_can_be_fixed_by_labelled_texts(
    ready: dict[Task, Prepared], labelled: dict[Task, LabelledFiles], tmp_path: Path
) -> None:
    options, manifest = ready[Task.SEVERAL]
    train = labelled[Task.SEVERAL].train
    fixed = prepare(replace(options, output=tmp_path / "fixed", calibrate_on=train))
    assert manifest.source.calibration is None
    assert fixed.source.calibration == Calibration(
        file=train.name, sha256=file_sha256(train), texts=200
    )
    assert fixed.files["weights.bin"] == manifest.files["weights.bin"]
    assert fixed.files["model.onnx"] != manifest.files["model.onnx"]
    assert fixed.quality
    assert load_artifact(tmp_path / "fixed").manifest == fixed


@pytest.mark.parametrize("task", Task)
def test_the_model_card_says_what_the_manifest_says(
    ready: dict[Task, Prepared], task: Task
) -> None:
    options, manifest = ready[task]
    card = (options.output / "README.md").read_text(encoding="utf-8")
    assert card.startswith(f"# {task}-model\n")
    assert manifest.quality is not None
    assert f"| macro F1 | {manifest.quality.fp32.macro_f1:.4f} |" in card
    for label, threshold in manifest.thresholds.items():
        assert f"| {label} | {threshold} |" in card


@pytest.mark.parametrize("task", Task)
def test_a_checkpoint_is_prepared_without_labelled_texts_too(
    ready: dict[Task, Prepared], tmp_path: Path, task: Task
) -> None:
    output = tmp_path / "unmeasured"
    manifest = prepare(PrepareOptions(ready[task].options.checkpoint, output))
    assert manifest.quality is None
    assert manifest.files == ready[task].manifest.files
    assert "Not measured" in (output / "README.md").read_text(encoding="utf-8")


def test_the_folder_around_an_artifact_is_made(ready: dict[Task, Prepared], tmp_path: Path) -> None:
    output = tmp_path / "models" / "chat" / "first"
    prepare(PrepareOptions(ready[Task.SEVERAL].options.checkpoint, output))
    assert load_artifact(output).manifest.name == "first"


def test_a_name_can_be_given(ready: dict[Task, Prepared], tmp_path: Path) -> None:
    checkpoint = ready[Task.SEVERAL].options.checkpoint
    assert prepare(PrepareOptions(checkpoint, tmp_path / "a", name="mood-2")).name == "mood-2"


def test_the_same_checkpoint_gives_the_same_bytes(
    ready: dict[Task, Prepared], tmp_path: Path
) -> None:
    checkpoint = ready[Task.SEVERAL].options.checkpoint
    for folder in ("one", "two"):
        prepare(PrepareOptions(checkpoint, tmp_path / folder, name="same"))
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize("task", Task)
def test_scores_are_near_those_of_the_checkpoint(ready: dict[Task, Prepared], task: Task) -> None:
    texts = ["we love that", "awful map again", "quiet round", "", "you you you 😂"]
    options, _ = ready[task]
    results = Classifier.load(options.output).classify(texts)
    scores = [list(result.scores.values()) for result in results]
    np.testing.assert_allclose(scores, Checkpoint.load(options.checkpoint).scores(texts), atol=0.05)


def test_a_lower_token_limit_cuts_texts_as_the_checkpoint_does(
    ready: dict[Task, Prepared], tmp_path: Path
) -> None:
    checkpoint = ready[Task.SEVERAL].options.checkpoint
    manifest = prepare(PrepareOptions(checkpoint, tmp_path / "short", max_tokens=5))
    texts = ["we win again today love love love", "we win again"]

    results = Classifier.load(tmp_path / "short").classify(texts)

    assert manifest.max_tokens == 5
    assert [result.truncated for result in results] == [True, False]
    assert results[0].scores == results[1].scores
    fp32 = Checkpoint.load(checkpoint).scores(texts, 5)
    np.testing.assert_allclose(list(results[0].scores.values()), fp32[0], atol=0.05)


@given(text=st.text(), limit=st.integers(3, 64))
def test_artifact_and_checkpoint_read_the_same_tokens(
    checkpoint: Checkpoint, artifact: Artifact, text: str, limit: int
) -> None:
    manifest = artifact.manifest.model_copy(update={"max_tokens": limit})
    (tokens,) = TextTokenizer(replace(artifact, manifest=manifest)).encode([text])
    assert encode(checkpoint.tokenizer, [text], limit) == [tokens.ids]


def test_logits_of_a_checkpoint_come_in_the_order_of_the_texts(checkpoint: Checkpoint) -> None:
    texts = ["we love that", "rest", "you win again today", "hate", "", "awful map again"]
    alone = [checkpoint.logits([text])[0] for text in texts]
    np.testing.assert_allclose(checkpoint.logits(texts), alone, atol=1e-5)


@pytest.mark.parametrize(("task", "usual"), [(Task.ONE_OF, 0.0), (Task.SEVERAL, 0.5)])
def test_thresholds_that_a_checkpoint_lacks_are_the_usual_ones(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, task: Task, usual: float
) -> None:
    checkpoint = tiny_checkpoint(task=task, thresholds={"cross": 0.25})
    manifest = prepare(PrepareOptions(checkpoint, tmp_path / "model"))
    assert manifest.thresholds == {"calm": usual, "cross": 0.25, "glad": usual}


def test_a_checkpoint_that_does_not_tell_its_task_is_one_of(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint(problem_type=None)
    assert prepare(PrepareOptions(checkpoint, tmp_path / "model")).task is Task.ONE_OF


def test_a_tokenizer_that_pads_and_cuts_does_neither_in_the_artifact(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint()
    tokenizer = tiny_tokenizer()
    tokenizer.enable_padding(length=40)
    tokenizer.enable_truncation(8)
    tokenizer.save(str(checkpoint / "tokenizer.json"))

    prepare(PrepareOptions(checkpoint, tmp_path / "model"))

    saved = json.loads((tmp_path / "model" / "tokenizer.json").read_bytes())
    assert (saved["padding"], saved["truncation"]) == (None, None)


def refused(options: PrepareOptions) -> None:
    """Check that a preparation is refused and leaves nothing behind."""
    before = sorted(options.output.parent.iterdir())
    with pytest.raises(QualityGateError, match="nothing was written"):
        prepare(options)
    assert sorted(options.output.parent.iterdir()) == before


@pytest.mark.parametrize("limits", [GateLimits(agreement=1.01), GateLimits(f1_points=-100.5)])
@pytest.mark.parametrize("task", Task)
def test_a_model_too_far_from_its_checkpoint_on_labelled_texts_is_refused(
    ready: dict[Task, Prepared], tmp_path: Path, task: Task, limits: GateLimits
) -> None:
    refused(replace(ready[task].options, output=tmp_path / "model", limits=limits))


def test_a_model_too_far_from_its_checkpoint_in_its_logits_is_refused(
    ready: dict[Task, Prepared], tmp_path: Path
) -> None:
    checkpoint = ready[Task.SEVERAL].options.checkpoint
    refused(PrepareOptions(checkpoint, tmp_path / "model", limits=GateLimits(logit_error=1e-6)))


def test_weights_too_wild_for_int8_are_refused(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    refused(PrepareOptions(tiny_checkpoint(spread=1.0), tmp_path / "model"))


def test_a_checkpoint_of_another_activation_is_refused(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    refused(PrepareOptions(tiny_checkpoint(activation="relu"), tmp_path / "model"))


def test_what_exists_is_not_overwritten(ready: dict[Task, Prepared]) -> None:
    options, manifest = ready[Task.SEVERAL]
    with pytest.raises(ConfigurationError, match="exists; remove it"):
        prepare(options)
    assert load_artifact(options.output).manifest == manifest


def test_more_tokens_than_the_checkpoint_has_are_refused(
    ready: dict[Task, Prepared], tmp_path: Path
) -> None:
    checkpoint = ready[Task.SEVERAL].options.checkpoint
    with pytest.raises(ConfigurationError, match="token limit 65 is not from 3 to 64"):
        prepare(PrepareOptions(checkpoint, tmp_path / "model", max_tokens=65))
    assert not list(tmp_path.iterdir())


def test_labels_that_the_checkpoint_has_not_are_refused(
    ready: dict[Task, Prepared], tmp_path: Path
) -> None:
    texts = write_jsonl(tmp_path / "texts.jsonl", [("we rest", ["sleepy"])])
    checkpoint = ready[Task.SEVERAL].options.checkpoint
    with pytest.raises(ExampleFileError, match="labels that the model does not have: sleepy"):
        prepare(PrepareOptions(checkpoint, tmp_path / "model", evaluate_on=texts))
    assert list(tmp_path.iterdir()) == [texts]


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_is_no_whole_checkpoint_is_refused(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, missing: str
) -> None:
    checkpoint = tiny_checkpoint()
    (checkpoint / missing).unlink()
    with pytest.raises(WorkerError, match="is not a DistilBERT sequence classifier"):
        prepare(PrepareOptions(checkpoint, tmp_path / "model"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_a_checkpoint_is_never_run_whatever_anyone_answers(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "yes")
    checkpoint, trace = tiny_checkpoint(), tmp_path / "code-has-run"
    (checkpoint / "evil.py").write_text(f"open({str(trace)!r}, 'w').close()\n")
    content = json.loads((checkpoint / file).read_bytes())
    content["auto_map"] = {
        "AutoConfig": "evil.Config",
        "AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"],
        "AutoModelForSequenceClassification": "evil.Model",
    }
    content |= {"model_type": "evil"} if file == "config.json" else {"tokenizer_class": "Evil"}
    (checkpoint / file).write_text(json.dumps(content))
    with suppress(WorkerError):
        prepare(PrepareOptions(checkpoint, tmp_path / "model"))
    assert not trace.exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_pipe_in_a_checkpoint_is_not_waited_for(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, name: str
) -> None:
    checkpoint = tiny_checkpoint()
    (checkpoint / name).unlink()
    os.mkfifo(checkpoint / name)
    with pytest.raises(WorkerError, match=f"{name} is not a regular file"):
        prepare(PrepareOptions(checkpoint, tmp_path / "model"))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_file_larger_than_any_of_a_checkpoint_is_not_read(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, name: str
) -> None:
    checkpoint = tiny_checkpoint()
    os.truncate(checkpoint / name, 1 << 40)
    with pytest.raises(WorkerError, match=f"{name} has 1099511627776 bytes"):
        prepare(PrepareOptions(checkpoint, tmp_path / "model"))


def test_a_bert_is_no_checkpoint(tmp_path: Path) -> None:
    bert = save_bert(tmp_path / "bert")
    with pytest.raises(WorkerError, match="is not a DistilBERT sequence classifier"):
        prepare(PrepareOptions(bert, tmp_path / "model"))


def test_an_artifact_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="is not a DistilBERT sequence classifier"):
        prepare(PrepareOptions(BUILT_IN_MODEL, tmp_path / "model"))


@pytest.mark.parametrize("name", ["my model", "-x", "a" * 65])
def test_a_name_that_no_model_can_have_is_reported(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, name: str
) -> None:
    with pytest.raises(ConfigurationError):
        prepare(PrepareOptions(tiny_checkpoint(), tmp_path / "model", name=name))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("max_tokens", [-1, 0, 2])
def test_a_limit_that_leaves_no_token_of_the_text_is_reported(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, max_tokens: int
) -> None:
    with pytest.raises(ConfigurationError):
        prepare(PrepareOptions(tiny_checkpoint(), tmp_path / "model", max_tokens=max_tokens))


def test_a_checkpoint_of_one_label_is_refused(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    with pytest.raises(WorkerError):
        prepare(PrepareOptions(tiny_checkpoint(labels=["calm"]), tmp_path / "model"))


def test_the_command_prepares_and_prints_how_near_int8_is(
    ready: dict[Task, Prepared], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, manifest = ready[Task.SEVERAL]
    command = ["prepare", str(options.checkpoint), "-o", str(tmp_path / "model")]
    command += ["--eval", str(options.evaluate_on), "--max-tokens", "32"]
    command += ["--calibrate", str(options.evaluate_on)]

    assert main([*command, "--max-f1-loss", "5", "--min-agreement", "0.9"]) == 0

    assert manifest.quality is not None
    wrote, quality = capsys.readouterr().out.splitlines()
    assert wrote == f"wrote {tmp_path / 'model'}"
    written = load_artifact(tmp_path / "model").manifest
    assert written.quality is not None
    assert quality.startswith(f"macro F1 {written.quality.int8.macro_f1:.4f} in int8, ")
    assert written.max_tokens == 32
    assert written.source.calibration is not None


def test_the_command_fails_where_the_gate_refuses(
    ready: dict[Task, Prepared], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(ready[Task.SEVERAL].options.checkpoint)
    command = ["prepare", checkpoint, "-o", str(tmp_path / "model")]
    assert main([*command, "--max-logit-error", "1e-6"]) == 1
    assert capsys.readouterr().err.startswith("worker: int8 strays too far from fp32: ")
