"""Small models and labelled files, made on the spot: nothing is fetched, nothing is stored."""

from __future__ import annotations

import json
import os
import random
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn, Protocol

import pytest

from worker.decisions import Task

# On CI a missing torch is a fault of the set-up, which must not pass for success.
IS_WANTED = find_spec("torch") is not None or bool(os.environ.get("CI"))

if IS_WANTED:
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import (
        DistilBertConfig,
        DistilBertForSequenceClassification,
        PreTrainedTokenizerFast,
    )

    from worker.artifact import Artifact, load_artifact
    from worker.build.finetune import FinetuneOptions, finetune
    from worker.build.prepare import Limits, PrepareOptions, prepare

    # Models this small take ten times longer where threads wait for each other.
    torch.set_num_threads(1)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from worker.quality import Quality

LABELS = ("calm", "cross", "glad")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PLAIN_WORDS = ("we", "you", "that", "was", "this", "game", "map", "team", "again", "today", "round")
TELLING_WORDS = {
    "calm": ("quiet", "slow", "rest"),
    "cross": ("awful", "broken", "hate"),
    "glad": ("great", "love", "win"),
}
NAME_WORDS = ("tears", "joy", "red", "heart", "thumbs", "up")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = (
    *SPECIAL,
    *"0123456789.,!?'-",
    *_LETTERS,
    *(f"##{letter}" for letter in _LETTERS),
    *PLAIN_WORDS,
    *(word for words in TELLING_WORDS.values() for word in words),
    *NAME_WORDS,
)


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

    def __call__(  # noqa: PLR0913 - the sizes of a model
        self,
        *,
        task: Task = Task.SEVERAL,
        labels: Sequence[str] = LABELS,
        dim: int = 32,
        hidden_dim: int = 64,
        layers: int = 2,
        heads: int = 4,
        positions: int = 64,
        vocabulary: int | None = None,
        spread: float = 0.2,
        thresholds: dict[str, float] | None = None,
        seed: int = 0,
    ) -> Path: ...


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
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, ids[name]) for name in ("[CLS]", "[SEP]")]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def randomize(model: torch.nn.Module, spread: float, seed: int) -> None:
    """Give all weights random values, biases too; those of normalizations are around 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=spread, generator=generator)
            if name.lower().endswith("norm.weight"):
                weight += 1


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoint:
    """Return a factory of ordinary transformers checkpoints with random weights."""

    def make(  # noqa: PLR0913 - the sizes of a model
        *,
        task: Task = Task.SEVERAL,
        labels: Sequence[str] = LABELS,
        dim: int = 32,
        hidden_dim: int = 64,
        layers: int = 2,
        heads: int = 4,
        positions: int = 64,
        vocabulary: int | None = None,
        spread: float = 0.2,
        thresholds: dict[str, float] | None = None,
        seed: int = 0,
    ) -> Path:
        problem_types = {
            Task.ONE_OF: "single_label_classification",
            Task.SEVERAL: "multi_label_classification",
        }
        config = DistilBertConfig(
            vocab_size=vocabulary or len(VOCABULARY),
            max_position_embeddings=positions,
            n_layers=layers,
            n_heads=heads,
            dim=dim,
            hidden_dim=hidden_dim,
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
            problem_type=problem_types[task],
            **({"thresholds": thresholds} if thresholds else {}),
        )
        model = DistilBertForSequenceClassification(config)
        randomize(model, spread, seed)
        folder = tmp_path_factory.mktemp("checkpoint")
        model.save_pretrained(folder)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tiny_tokenizer(), pad_token="[PAD]", unk_token="[UNK]"
        )
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def artifact(tiny_checkpoint: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Return the prepared artifact of a tiny checkpoint."""
    return prepared(tiny_checkpoint(), tmp_path_factory.mktemp("artifact"))


def prepared(checkpoint: Path, folder: Path) -> Artifact:
    """Prepare a checkpoint with random weights, however far int8 strays, and load the artifact."""
    options = PrepareOptions(checkpoint, folder / "model", limits=Limits(logit_error=1))
    prepare(options)
    return load_artifact(options.output)


def write_jsonl(path: Path, rows: Iterable[tuple[str, Sequence[str]]]) -> Path:
    """Write labelled texts as JSON lines."""
    lines = [json.dumps({"text": text, "labels": list(labels)}) + "\n" for text, labels in rows]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def made_up_texts(task: Task, count: int, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Make texts whose telling words say what their labels are."""
    rng = random.Random(seed)
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
    """Return a small untrained base."""
    return tiny_checkpoint(spread=0.1, seed=7)


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
            epochs=6,
            learning_rate=1e-2,
            batch_size=16,
            max_tokens=32,
            precision="fp32",
        )
        runs[task] = Trained(options, finetune(options))
    return runs
