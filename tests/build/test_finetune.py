"""Fine-tuning learns, is repeatable, and continues where it was killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EarlyStoppingCallback,
)

from tests.build.conftest import LABELS, save_bert, tiny_tokenizer, train_on, write_jsonl
from worker.build.checkpoint import Checkpoint
from worker.build.finetune import resolve_precision
from worker.build.training import FinetuneOptions
from worker.cli.entry import main
from worker.errors import ConfigurationError, ExampleFileError, WorkerError
from worker.evaluation.command import evaluate
from worker.evaluation.examples import ExampleFormat
from worker.inference.decisions import Task

if TYPE_CHECKING:
    from pathlib import Path

    from tests.build.conftest import LabelledFiles, Trained

# What 200 texts in batches of 16 make of the fixture `options`.
STEPS = 39
STEPS_A_CHECKPOINT = 6
KILLED_ONCE_SAVED = """
import os, signal, sys
from transformers import EarlyStoppingCallback
from worker.cli.entry import main

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

EarlyStoppingCallback.on_save = die
main(sys.argv[1:])
"""


@pytest.fixture
def options(base: Path, labelled: dict[Task, LabelledFiles], tmp_path: Path) -> FinetuneOptions:
    """Return options of a run of `STEPS` steps."""
    files = labelled[Task.SEVERAL]
    return FinetuneOptions(
        files.train,
        files.dev,
        tmp_path / "new",
        base=str(base),
        epochs=3,
        learning_rate=5e-3,
        batch_size=16,
        max_tokens=32,
        precision="fp32",
    )


@pytest.fixture
def unfinished(options: FinetuneOptions, monkeypatch: pytest.MonkeyPatch) -> FinetuneOptions:
    """Return the options of a run that was interrupted after its second checkpoint."""

    def stop(*arguments: Any, **_: object) -> None:
        _, _, state, _ = arguments
        if state.global_step == 2 * STEPS_A_CHECKPOINT:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EarlyStoppingCallback, "on_save", stop)
        with pytest.raises(KeyboardInterrupt):
            train_on(options)
    return options


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that every training step from now on adds its number to."""
    done: list[int] = []

    def count(*arguments: Any, **_: object) -> None:
        _, _, state, _ = arguments
        done.append(state.global_step)

    monkeypatch.setattr(EarlyStoppingCallback, "on_step_end", count)
    return done


def partial_of(options: FinetuneOptions) -> Path:
    return options.output.with_name(options.output.name + ".partial")


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def are_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("task", Task)
def test_an_easy_rule_is_learnt(trained: dict[Task, Trained], task: Task) -> None:
    assert trained[task].quality.macro_f1 > 0.9


@pytest.mark.parametrize("task", Task)
def test_the_task_is_what_the_labels_are(trained: dict[Task, Trained], task: Task) -> None:
    checkpoint = Checkpoint.load(trained[task].options.output)
    assert trained[task].options.task is None
    assert checkpoint.task is task
    assert checkpoint.labels == LABELS


@pytest.mark.parametrize("task", Task)
def test_the_quality_is_that_of_the_checkpoint_on_dev(
    trained: dict[Task, Trained], task: Task
) -> None:
    options, quality = trained[task]
    assert evaluate(options.output, options.dev, ExampleFormat()) == quality


@pytest.mark.parametrize("task", Task)
@torch.inference_mode()
def test_transformers_loads_the_result_and_gives_the_same_logits(
    trained: dict[Task, Trained], task: Task
) -> None:
    folder = trained[task].options.output
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "we love that game 😂 again"

    logits = model(**tokenizer(text, return_tensors="pt")).logits

    expected = Checkpoint.load(folder).logits([text])
    torch.testing.assert_close(logits, torch.from_numpy(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("task", Task)
def test_the_result_has_thresholds(trained: dict[Task, Trained], task: Task) -> None:
    config = json.loads((trained[task].options.output / "config.json").read_bytes())
    assert list(config["thresholds"]) == list(LABELS)
    chosen = set(config["thresholds"].values())
    assert chosen == {0} if task is Task.ONE_OF else all(0.05 <= value <= 0.95 for value in chosen)


@pytest.mark.parametrize("task", Task)
def test_the_tokenizer_of_the_result_neither_pads_nor_cuts(
    trained: dict[Task, Trained], task: Task
) -> None:
    tokenizer = json.loads((trained[task].options.output / "tokenizer.json").read_bytes())
    assert tokenizer["padding"] is None
    assert tokenizer["truncation"] is None


def test_the_result_is_all_that_is_left_and_holds_no_pickles(
    trained: dict[Task, Trained],
) -> None:
    folder = trained[Task.SEVERAL].options.output
    assert list(folder.parent.iterdir()) == [folder]
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}


def test_the_result_records_how_it_was_made(trained: dict[Task, Trained]) -> None:
    options, quality = trained[Task.SEVERAL]
    training = json.loads((options.output / "training.json").read_bytes())
    assert training["dev"] == quality.model_dump()
    assert training["options"]["seed"] == options.seed
    assert training["options"]["train"] == options.train.name


def test_the_record_names_no_folder_of_this_machine(trained: dict[Task, Trained]) -> None:
    options, _ = trained[Task.SEVERAL]
    training = (options.output / "training.json").read_text(encoding="utf-8")
    assert str(options.train.parent.parent) not in training


def test_emoji_become_tokens(trained: dict[Task, Trained]) -> None:
    checkpoint = Checkpoint.load(trained[Task.SEVERAL].options.output)
    assert checkpoint.tokenizer.encode("we😂").tokens == ["[CLS]", "we", "😂", "[SEP]"]
    assert checkpoint.model.config.vocab_size == checkpoint.tokenizer.get_vocab_size()


def test_without_emoji_the_vocabulary_stays(options: FinetuneOptions) -> None:
    train_on(replace(options, emoji=False, epochs=1))
    tokenizer = Checkpoint.load(options.output).tokenizer
    assert tokenizer.get_vocab() == tiny_tokenizer().get_vocab()


def test_the_same_seed_gives_the_same_weights(options: FinetuneOptions, tmp_path: Path) -> None:
    again = replace(options, output=tmp_path / "again")
    other = replace(options, output=tmp_path / "other", seed=2)
    for run in (options, again, other):
        train_on(replace(run, epochs=1))
    weights = weights_of(options.output)
    assert are_equal(weights, weights_of(again.output))
    assert not are_equal(weights, weights_of(other.output))


def test_training_stops_where_it_does_not_get_better(
    options: FinetuneOptions, steps: list[int]
) -> None:
    train_on(replace(options, learning_rate=1e-12, patience=2))
    assert len(steps) == STEPS_A_CHECKPOINT * (1 + 2)


@pytest.mark.slow
def test_a_killed_run_continues_and_ends_as_if_nothing_had_been(
    options: FinetuneOptions, tmp_path: Path, steps: list[int]
) -> None:
    command = ["finetune", "--train", str(options.train), "--dev", str(options.dev)]
    command += ["--base", options.base, "--epochs", "3", "--learning-rate", "5e-3"]
    command += ["--batch-size", "16", "--max-tokens", "32", "--precision", "fp32"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_ONCE_SAVED, *command, "-o", str(options.output)],
        env=one_thread,
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert (partial_of(options) / f"checkpoint-{STEPS_A_CHECKPOINT}").is_dir()

    assert main([*command, "-o", str(options.output)]) == 0
    assert steps == list(range(STEPS_A_CHECKPOINT + 1, STEPS + 1))
    assert list(tmp_path.iterdir()) == [options.output]

    train_on(replace(options, output=tmp_path / "at-once"))
    assert are_equal(weights_of(options.output), weights_of(tmp_path / "at-once"))


def test_a_run_killed_while_it_saved_continues_from_the_checkpoint_before(
    unfinished: FinetuneOptions, steps: list[int]
) -> None:
    # transformers writes this file last.
    last = partial_of(unfinished) / f"checkpoint-{2 * STEPS_A_CHECKPOINT}"
    (last / "trainer_state.json").unlink()
    train_on(unfinished)
    assert steps == list(range(STEPS_A_CHECKPOINT + 1, STEPS + 1))


def test_an_unfinished_run_with_other_options_is_in_the_way(unfinished: FinetuneOptions) -> None:
    before = sorted(partial_of(unfinished).rglob("*"))
    with pytest.raises(ConfigurationError, match="unfinished run with other options or data"):
        train_on(replace(unfinished, seed=2))
    assert sorted(partial_of(unfinished).rglob("*")) == before
    assert not unfinished.output.exists()


def test_an_unfinished_run_on_other_texts_is_in_the_way(
    unfinished: FinetuneOptions, tmp_path: Path
) -> None:
    folder = tmp_path / "more"
    folder.mkdir()
    train = folder / unfinished.train.name
    shutil.copy(unfinished.train, train)
    with train.open("a", encoding="utf-8") as file:
        file.write('{"text": "we rest", "labels": ["calm"]}\n')
    with pytest.raises(ConfigurationError, match="unfinished run with other options or data"):
        train_on(replace(unfinished, train=train))


def test_a_folder_that_no_run_made_is_not_continued(options: FinetuneOptions) -> None:
    partial_of(options).mkdir()
    (partial_of(options) / "diary.txt").touch()
    with pytest.raises(ConfigurationError, match="unfinished run with other options or data"):
        train_on(options)


@pytest.mark.parametrize(
    "change", [{"batch_size": 0}, {"epochs": 0}, {"max_tokens": -1}, {"precision": "fp64"}]
)
def test_options_that_make_no_sense_are_refused_before_any_work(
    options: FinetuneOptions, change: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError, match="must be"):
        train_on(replace(options, **change))
    assert not partial_of(options).exists()


def test_what_exists_is_not_overwritten(options: FinetuneOptions) -> None:
    options.output.mkdir()
    with pytest.raises(ConfigurationError, match="exists; remove it"):
        train_on(options)
    assert not list(options.output.iterdir())
    assert not partial_of(options).exists()


def test_one_label_leaves_nothing_to_learn(options: FinetuneOptions, tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "one.jsonl", [("we rest", ["calm"]), ("we win", ["calm"])])
    with pytest.raises(ExampleFileError, match="fewer than two labels"):
        train_on(replace(options, train=train))


def test_dev_has_no_labels_that_train_has_not(options: FinetuneOptions, tmp_path: Path) -> None:
    dev = write_jsonl(tmp_path / "dev.jsonl", [("we rest", ["calm", "sleepy"])])
    with pytest.raises(ExampleFileError, match="labels that the model does not have: sleepy"):
        train_on(replace(options, dev=dev))


@pytest.mark.parametrize("labels", [[], ["calm", "glad"]])
def test_one_of_wants_one_label_a_text(
    options: FinetuneOptions, tmp_path: Path, labels: list[str]
) -> None:
    dev = write_jsonl(tmp_path / "dev.jsonl", [("we rest", labels)])
    with pytest.raises(ExampleFileError, match="some texts have no label or several"):
        train_on(replace(options, dev=dev, task=Task.ONE_OF))


def test_labels_can_be_trained_as_several_though_each_text_has_one(
    options: FinetuneOptions, labelled: dict[Task, LabelledFiles]
) -> None:
    train, dev = labelled[Task.ONE_OF]
    train_on(replace(options, train=train, dev=dev, task=Task.SEVERAL, epochs=1))
    assert Checkpoint.load(options.output).task is Task.SEVERAL


def test_a_missing_file_of_texts_leaves_nothing_behind(
    options: FinetuneOptions, tmp_path: Path
) -> None:
    with pytest.raises(ExampleFileError, match="cannot read"):
        train_on(replace(options, train=tmp_path / "missing.jsonl"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--text-field", "body"], "a text in 'body' and its labels in 'labels'"),
        (["--label-field", "label"], "a text in 'text' and its labels in 'label'"),
        (["--dev", "missing.jsonl"], "cannot read missing.jsonl"),
        (["--epochs", "0"], "epochs must be a number of more than 0"),
        (["--epochs", "nan"], "epochs must be a number of more than 0"),
        (["--learning-rate", "inf"], "learning_rate must be a number of more than 0"),
        (["--weight-decay", "-1"], "weight_decay must be a number of 0 or more"),
        (["-o", "texts.jsonl"], "texts.jsonl exists"),
    ],
)
def test_what_is_wrong_with_data_and_options_is_said_before_torch_is_loaded(
    tmp_path: Path, arguments: list[str], problem: str
) -> None:
    write_jsonl(tmp_path / "texts.jsonl", [("we win", ["yes"]), ("we hate", ["no"])])
    command = ["finetune", "--train", "texts.jsonl", "--dev", "texts.jsonl", "-o", "new"]
    program = (
        "import sys; from worker.cli import main; "
        f"code = main({[*command, *arguments]}); print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    code, loaded = done.stdout.split()
    assert code in {"1", "2"}
    assert problem in done.stderr
    assert loaded == "False"


def test_a_result_is_a_base_for_other_labels(
    options: FinetuneOptions, trained: dict[Task, Trained], tmp_path: Path
) -> None:
    rows = [("we win", ["yes"]), ("we hate", ["no"])]
    texts = write_jsonl(tmp_path / "texts.jsonl", rows)
    first = trained[Task.SEVERAL].options.output
    train_on(replace(options, train=texts, dev=texts, base=str(first)))
    result = Checkpoint.load(options.output)
    assert result.labels == ("no", "yes")
    assert result.tokenizer.get_vocab() == Checkpoint.load(first).tokenizer.get_vocab()


def test_more_tokens_than_the_base_has_are_refused(
    options: FinetuneOptions, tmp_path: Path
) -> None:
    rows = [("we win " * 50, ["glad"]), ("you hate", ["cross"])]
    texts = write_jsonl(tmp_path / "texts.jsonl", rows)
    with pytest.raises(ConfigurationError):
        train_on(replace(options, train=texts, dev=texts, max_tokens=65))


def test_a_base_that_is_missing_is_reported(options: FinetuneOptions, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="is not a DistilBERT"):
        train_on(replace(options, base=str(tmp_path / "missing")))


def test_a_base_that_is_no_distilbert_is_refused(options: FinetuneOptions, tmp_path: Path) -> None:
    bert = save_bert(tmp_path / "bert")
    with pytest.raises(WorkerError, match="is not a DistilBERT"):
        train_on(replace(options, base=str(bert)))


def test_a_base_of_pickled_weights_is_refused(
    options: FinetuneOptions, base: Path, tmp_path: Path
) -> None:
    pickled = tmp_path / "pickled"
    shutil.copytree(base, pickled)
    torch.save(weights_of(base), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(WorkerError, match="with safetensors weights"):
        train_on(replace(options, base=str(pickled)))


def test_the_default_base_is_the_minilm(options: FinetuneOptions, tmp_path: Path) -> None:
    rows = [("we win", ["glad"]), ("we hate this", ["cross"])]
    texts = write_jsonl(tmp_path / "texts.jsonl", rows)
    train_on(replace(options, train=texts, dev=texts, base="minilm", epochs=1))
    checkpoint = Checkpoint.load(options.output)
    shutil.rmtree(options.output)
    assert (checkpoint.model.config.n_layers, checkpoint.model.config.dim) == (6, 384)
    assert checkpoint.tokenizer.encode("wp 😂").ids[-2] >= 30522


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_precision_that_is_named_is_taken(precision: str) -> None:
    assert resolve_precision(precision) == precision


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU decides")
@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ({"amx_bf16"}, "bf16"),
        ({"avx512_bf16", "avx2"}, "bf16"),
        ({"avx2"}, "fp32"),
        (set(), "fp32"),
    ],
)
def test_without_a_gpu_the_precision_is_what_the_cpu_multiplies(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], precision: str
) -> None:
    monkeypatch.setattr("worker.build.finetune.cpu_flags", lambda: frozenset(flags))
    assert resolve_precision("auto") == precision


def test_the_command_reads_numbered_labels_and_prints_the_quality(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names.txt").write_text("no\nyes\n", encoding="utf-8")
    texts = tmp_path / "texts.tsv"
    texts.write_text("we win\t1\nwe hate\t0\n", encoding="utf-8")
    command = ["finetune", "--train", str(texts), "--dev", str(texts), "--base", str(base)]
    command += ["-o", str(tmp_path / "new"), "--label-names", str(tmp_path / "names.txt")]

    assert main([*command, "--epochs", "1", "--no-emoji", "--max-tokens", "32"]) == 0

    assert "macro F1" in capsys.readouterr().out
    assert Checkpoint.load(tmp_path / "new").labels == ("no", "yes")


def test_the_command_tells_wrong_usage_by_its_exit_code(
    options: FinetuneOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    options.output.mkdir()
    command = ["finetune", "--train", str(options.train), "--dev", str(options.dev)]
    assert main([*command, "-o", str(options.output)]) == 2
    assert (
        capsys.readouterr().err
        == f"worker: {options.output} exists; remove it, or name another -o\n"
    )
