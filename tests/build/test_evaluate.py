"""Evaluating measures an artifact as it runs, and a checkpoint in fp32."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.build.conftest import LABELS, made_up_texts, write_jsonl
from worker.build.checkpoint import Checkpoint
from worker.build.prepare import PrepareOptions, prepare
from worker.cli.entry import main
from worker.errors import ArtifactError, ConfigurationError, ExampleFileError
from worker.evaluation.command import evaluate
from worker.evaluation.examples import ExampleFormat
from worker.evaluation.quality import measure, quality_table
from worker.inference.classifier import Classifier
from worker.inference.decisions import Task

if TYPE_CHECKING:
    from pathlib import Path

    from tests.build.conftest import Trained

FORM = ExampleFormat()


class Models(NamedTuple):
    """A trained checkpoint, what was prepared from it, and texts that neither has seen."""

    checkpoint: Path
    artifact: Path
    texts: Path


@pytest.fixture(scope="module", params=Task)
def models(
    trained: dict[Task, Trained],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Models:
    task: Task = request.param
    folder = tmp_path_factory.mktemp("models")
    checkpoint = trained[task].options.output
    prepare(PrepareOptions(checkpoint, folder / "model"))
    texts = write_jsonl(folder / "test.jsonl", made_up_texts(task, 90, seed=3))
    return Models(checkpoint, folder / "model", texts)


def test_artifact_and_checkpoint_are_nearly_as_good(models: Models) -> None:
    fp32 = evaluate(models.checkpoint, models.texts, FORM)
    int8 = evaluate(models.artifact, models.texts, FORM)
    assert fp32.macro_f1 > 0.8
    assert int8.macro_f1 == pytest.approx(fp32.macro_f1, abs=0.02)
    assert int8.texts == fp32.texts == 90
    assert [q.support for q in int8.labels.values()] == [q.support for q in fp32.labels.values()]


def test_an_artifact_is_measured_with_the_labels_that_it_gives(models: Models) -> None:
    rows = [json.loads(line) for line in models.texts.read_text(encoding="utf-8").splitlines()]
    results = Classifier.load(models.artifact).classify([row["text"] for row in rows])
    truth = [set(row["labels"]) for row in rows]
    expected = measure(LABELS, truth, [set(result.labels) for result in results])
    assert evaluate(models.artifact, models.texts, FORM) == expected


def test_a_checkpoint_is_measured_with_its_thresholds(models: Models) -> None:
    rows = [json.loads(line) for line in models.texts.read_text(encoding="utf-8").splitlines()]
    checkpoint = Checkpoint.load(models.checkpoint)
    given = checkpoint.decide(checkpoint.scores([row["text"] for row in rows]))
    expected = measure(LABELS, [set(row["labels"]) for row in rows], given)
    assert evaluate(models.checkpoint, models.texts, FORM) == expected


@pytest.mark.parametrize("kind", ["checkpoint", "artifact"])
def test_labels_that_the_model_has_not_are_reported(
    models: Models, tmp_path: Path, kind: str
) -> None:
    texts = write_jsonl(tmp_path / "texts.jsonl", [("we", ["sleepy"]), ("you", ["calm", "bored"])])
    with pytest.raises(ExampleFileError) as error:
        evaluate(getattr(models, kind), texts, FORM)
    assert str(error.value) == (
        f"{texts} has labels that the model does not have: bored, sleepy; "
        "the model's are calm, cross, glad"
    )


def test_a_model_that_is_missing_is_reported(models: Models, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot read .*No such file or directory"):
        evaluate(tmp_path / "missing", models.texts, FORM)


def test_texts_that_are_missing_are_reported(models: Models, tmp_path: Path) -> None:
    with pytest.raises(ExampleFileError, match=r"cannot read .*No such file or directory"):
        evaluate(models.artifact, tmp_path / "missing.jsonl", FORM)


def test_a_checkpoint_needs_the_extra(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "worker.build.checkpoint", None)
    with pytest.raises(ConfigurationError, match="is a checkpoint, which needs torch"):
        evaluate(models.checkpoint, models.texts, FORM)
    assert evaluate(models.artifact, models.texts, FORM).texts == 90


@pytest.mark.parametrize("kind", ["checkpoint", "artifact"])
def test_the_command_prints_json(
    models: Models, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    model = getattr(models, kind)
    assert main(["evaluate", str(model), str(models.texts), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == evaluate(model, models.texts, FORM).model_dump()
    assert 0.8 < printed["macro_f1"] <= 1


def test_the_command_prints_a_table(models: Models, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(models.artifact), str(models.texts)]) == 0
    table = quality_table(evaluate(models.artifact, models.texts, FORM))
    assert capsys.readouterr().out == f"{table}\n"


def test_the_command_reads_other_fields(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts.csv"
    texts.write_text("message,mood\nwe win,glad\nawful,cross\n", encoding="utf-8")
    command = ["evaluate", str(models.artifact), str(texts), "--json"]
    assert main([*command, "--text-field", "message", "--label-field", "mood"]) == 0
    assert json.loads(capsys.readouterr().out)["texts"] == 2


def test_the_command_fails_on_a_missing_model(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(tmp_path / "missing"), str(models.texts)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("worker: cannot read ")
