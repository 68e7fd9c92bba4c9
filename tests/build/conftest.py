"""Small models and labelled files, made on the spot: nothing is fetched, nothing is stored."""

from __future__ import annotations

import json
import os
import random
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol

import pytest

from worker.inference.decisions import Task

# On CI a missing torch is a fault of the set-up, which must not pass for success.
IS_WANTED = find_spec("torch") is not None or bool(os.environ.get("CI"))

if IS_WANTED:
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        DistilBertConfig,
        DistilBertForSequenceClassification,
        PreTrainedTokenizerFast,
    )

    from worker.build.finetune import finetune
    from worker.build.prepare import GateLimits, PrepareOptions, prepare
    from worker.build.training import FinetuneOptions, read_training_data
    from worker.inference.artifact import Artifact, load_artifact

    # Models this small take ten times longer where threads wait for each other.
    torch.set_num_threads(1)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from worker.inference.artifact import Quality

LABELS = ("calm", "cross", "glad")
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
PLAIN_WORDS = ("we", "you", "that", "was", "this", "game", "map", "team", "again", "today", "round")
TELLING_WORDS = {
    "calm": ("quiet", "slow", "rest"),
    "cross": ("awful", "broken", "hate"),
    "glad": ("great", "love", "win"),
}
NAME_WORDS = ("tears", "joy", "red", "heart", "thumbs", "up")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = (
    *SPECIAL.values(),
    *"0123456789.,!?'-",
    *_LETTERS,
    *(f"##{letter}" for letter in _LETTERS),
    *PLAIN_WORDS,
    *(word for words in TELLING_WORDS.values() for word in words),
    *NAME_WORDS,
)

_TINY = {
    "vocab_size": len(VOCABULARY),
    "max_position_embeddings": 64,
    "n_layers": 2,
    "n_heads": 4,
    "dim": 32,
    "hidden_dim": 64,
}
_PROBLEM_TYPES = {
    Task.ONE_OF: "single_label_classification",
    Task.SEVERAL: "multi_label_classification",
}


class _Skipped(pytest.Module):
    def collect(self) -> NoReturn:
        pytest.skip("needs the extra `build`")


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Module | None:
    """Report the modules of this folder as skipped, without importing them, where torch lacks."""
    return None if IS_WANTED else _Skipped.from_parent(parent, path=module_path)


class TinyCheckpoint(Protocol):
    """Makes a checkpoint with random weights and returns its folder."""

    def __call__(
        self,
        *,
        task: Task = Task.SEVERAL,
        labels: Sequence[str] = LABELS,
        spread: float = 0.2,
        **config: object,
    ) -> Path:
        """Make one; `config` is what differs from `_TINY` in its `config.json`."""


class LabelledFiles(NamedTuple):
    """Texts to train on, and others to measure on."""

    train: Path
    dev: Path


class Trained(NamedTuple):
    """A finished run of `finetune`."""

    options: FinetuneOptions
    quality: Quality


def tiny_tokenizer() -> Tokenizer:
    """Return an uncased WordPiece tokenizer of letters and a few words."""
    ids = {token: index for index, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, ids[name]) for name in ("[CLS]", "[SEP]")]
    )
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    return tokenizer


def as_transformers(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Wrap a tokenizer as transformers has them."""
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, **SPECIAL
    )


def save_bert(folder: Path) -> Path:
    """Write a checkpoint of a small BERT, which is no DistilBERT."""
    config = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    as_transformers(tiny_tokenizer()).save_pretrained(folder)
    return folder


def randomize(model: torch.nn.Module, spread: float) -> None:
    """Give all weights random values, biases too; those of normalizations are around 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            middle = float(name.lower().endswith("norm.weight"))
            weight.normal_(middle, spread, generator=generator)


def train_on(options: FinetuneOptions) -> Quality:
    """Train as the command does."""
    return finetune(options, read_training_data(options))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoint:
    """Return a factory of ordinary transformers checkpoints with random weights."""

    def make(
        *,
        task: Task = Task.SEVERAL,
        labels: Sequence[str] = LABELS,
        spread: float = 0.2,
        **config: object,
    ) -> Path:
        has: Any = {
            **_TINY,
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
            "problem_type": _PROBLEM_TYPES[task],
            **config,
        }
        model = DistilBertForSequenceClassification(DistilBertConfig(**has))
        randomize(model, spread)
        folder = tmp_path_factory.mktemp("checkpoint")
        model.save_pretrained(folder)
        as_transformers(tiny_tokenizer()).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_artifact(
    tiny_checkpoint: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    """Return the artifact of a tiny checkpoint."""
    return prepared(tiny_checkpoint(), tmp_path_factory.mktemp("artifact"))


def prepared(checkpoint: Path, folder: Path) -> Artifact:
    """Prepare a checkpoint with random weights, however far int8 strays, and load the artifact."""
    options = PrepareOptions(checkpoint, folder / "model", limits=GateLimits(logit_error=1))
    prepare(options)
    return load_artifact(options.output)


def write_jsonl(path: Path, rows: Iterable[tuple[str, Sequence[str]]]) -> Path:
    """Write labelled texts as JSON lines."""
    lines = [json.dumps({"text": text, "labels": list(labels)}) + "\n" for text, labels in rows]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def made_up_texts(task: Task, count: int, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Make texts whose telling words say what their labels are."""
    rng = random.Random(seed)  # noqa: S311 - nothing secret
    for index in range(count):
        if task is Task.ONE_OF:
            labels = [LABELS[index % len(LABELS)]]
        else:
            labels = [label for label in LABELS if rng.random() < 0.4]
        words = rng.choices(PLAIN_WORDS, k=rng.randint(1, 6))
        words += [rng.choice(TELLING_WORDS[label]) for label in labels]
        rng.shuffle(words)
        yield " ".join(words), labels


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> dict[Task, LabelledFiles]:
    """Return labelled texts for both tasks."""
    folder = tmp_path_factory.mktemp("labelled")
    return {
        task: LabelledFiles(
            write_jsonl(folder / f"{task}-train.jsonl", made_up_texts(task, 200, 1)),
            write_jsonl(folder / f"{task}-dev.jsonl", made_up_texts(task, 60, 2)),
        )
        for task in Task
    }


@pytest.fixture(scope="session")
def base(tiny_checkpoint: TinyCheckpoint) -> Path:
    """Return an untrained base for other labels, as small as one that learns reliably."""
    return tiny_checkpoint(labels=("no", "yes"), spread=0.1, dim=64, hidden_dim=128)


@pytest.fixture(scope="session")
def trained(
    base: Path, labelled: dict[Task, LabelledFiles], tmp_path_factory: pytest.TempPathFactory
) -> dict[Task, Trained]:
    """Return a finished run of each task."""
    runs = {}
    for task, files in labelled.items():
        options = FinetuneOptions(
            files.train,
            files.dev,
            tmp_path_factory.mktemp("trained") / task,
            base=str(base),
            epochs=8,
            learning_rate=5e-3,
            batch_size=16,
            max_tokens=32,
            precision="fp32",
        )
        runs[task] = Trained(options, train_on(options))
    return runs
