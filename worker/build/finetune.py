"""Fine-tuning a DistilBERT classifier on labelled texts, with transformers' Trainer."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import (
    DataCollatorWithPadding,
    DistilBertForSequenceClassification,
    DistilBertModel,
    EarlyStoppingCallback,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from worker.build.checkpoint import (
    TASK_OF_PROBLEM_TYPE,
    Checkpoint,
    encode,
    load_tokenizer,
    quiet_transformers,
)
from worker.build.digests import file_sha256
from worker.build.emoji import add_emoji
from worker.build.minilm import load_minilm
from worker.build.thresholds import choose_thresholds
from worker.errors import ConfigurationError, WorkerError
from worker.evaluation.quality import measure
from worker.inference.cpu import cpu_flags
from worker.inference.decisions import Task, decide, scores_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from tokenizers import Tokenizer
    from transformers import DistilBertConfig, EvalPrediction

    from worker.build.training import FinetuneOptions, TrainingData
    from worker.evaluation.examples import Example
    from worker.inference.artifact import Quality

_EVALUATIONS_AN_EPOCH = 2
_WARM_UP = 0.06
_BF16_DOT_PRODUCT = frozenset({"avx512_bf16", "amx_bf16"})
_SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def finetune(options: FinetuneOptions, data: TrainingData) -> Quality:
    """Train, choose thresholds on dev, and write the checkpoint; returns its quality on dev.

    `data` is what `read_training_data` returned for these options.

    An unfinished run of the same options and data, in `OUTPUT.partial`, is continued.

    Raises:
        ConfigurationError: an unfinished run of other options is in the way.
        WorkerError: the base cannot be had.

    """
    quiet_transformers()
    partial = _open_partial(options)
    set_seed(options.seed)
    model, tokenizer = _start(options, data)
    trainer = _trainer(options, data, model, tokenizer, partial)
    trainer.train(resume_from_checkpoint=_last_checkpoint(partial))
    quality = _save(options, data, model, tokenizer, partial / "result")
    (partial / "result").rename(options.output)
    shutil.rmtree(partial)
    return quality


def _start(
    options: FinetuneOptions, data: TrainingData
) -> tuple[DistilBertForSequenceClassification, Tokenizer]:
    """Load the base with a new head, and with tokens and rows for emoji where wanted."""
    head: dict[str, Any] = {
        "num_labels": len(data.labels),
        "id2label": dict(enumerate(data.labels)),
        "label2id": {label: index for index, label in enumerate(data.labels)},
        "problem_type": {v: k for k, v in TASK_OF_PROBLEM_TYPE.items()}[data.task],
    }
    if options.base == "minilm":
        config, state, tokenizer = load_minilm()
    else:
        tokenizer = load_tokenizer(options.base, local=False)
        config, state = _load_base(options.base)
    if options.max_tokens > config.max_position_embeddings:
        raise ConfigurationError(
            f"the token limit {options.max_tokens} is more than the base's "
            f"{config.max_position_embeddings}"
        )
    config.update(head)
    model = DistilBertForSequenceClassification(config)
    model.distilbert.load_state_dict(state)
    # The tokenizer file of a base may pad and cut by itself. The worker never pads, and cuts by its own limit.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if options.emoji:
        old: torch.nn.Embedding = model.distilbert.embeddings.word_embeddings
        texts = [example.text for example in data.train]
        rows = add_emoji(tokenizer, old.weight.detach(), texts)
        model.distilbert.embeddings.word_embeddings = torch.nn.Embedding(
            rows.shape[0], rows.shape[1], old.padding_idx, _weight=rows
        )
        model.config.vocab_size = rows.shape[0]
    return model, tokenizer


def _load_base(base: str) -> tuple[DistilBertConfig, dict[str, torch.Tensor]]:
    """Load the encoder of a folder or a hub id, without the head that it may have."""
    try:
        model = DistilBertModel.from_pretrained(base, use_safetensors=True)
    except (OSError, ValueError, RuntimeError):
        model = None
    if model is None or model.config.model_type != "distilbert":
        raise WorkerError(
            f"the base {base} is not a DistilBERT with safetensors weights",
            "name `minilm`, a checkpoint folder, or a hub id that the network reaches",
        )
    return model.config, model.state_dict()


def _last_checkpoint(partial: Path) -> str | None:
    """Return the Trainer's last whole checkpoint, and remove those that a kill cut short."""
    for folder in partial.glob("checkpoint-*"):
        # The Trainer writes this file last.
        if not _is_json(folder / "trainer_state.json"):
            shutil.rmtree(folder)
    last: str | None = get_last_checkpoint(str(partial))  # type: ignore[no-untyped-call]  # transformers types few
    return last


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return True


def _trainer(
    options: FinetuneOptions,
    data: TrainingData,
    model: DistilBertForSequenceClassification,
    tokenizer: Tokenizer,
    partial: Path,
) -> Trainer:
    def dev_quality(prediction: EvalPrediction) -> dict[str, float]:
        # The Trainer goes through dev in the order of lengths, and only its own label ids are in that order.
        truth = _truth(data, prediction.label_ids)
        scores = np.array([scores_of(data.task, row) for row in prediction.predictions])
        quality = _measure(data, scores, _thresholds(data, scores, truth), truth)
        return {"macro_f1": quality.macro_f1, "accuracy": quality.accuracy}

    return Trainer(
        model=model,
        args=_arguments(options, partial, len(data.train)),
        train_dataset=_dataset(tokenizer, options.max_tokens, data, data.train),
        eval_dataset=_dataset(tokenizer, options.max_tokens, data, data.dev),
        data_collator=DataCollatorWithPadding(_as_transformers(tokenizer, options.max_tokens)),
        compute_metrics=dev_quality,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=options.patience)],
    )


def _arguments(options: FinetuneOptions, partial: Path, texts: int) -> TrainingArguments:
    every = max(1, -(-texts // options.batch_size) // _EVALUATIONS_AN_EPOCH)
    on_gpu = torch.cuda.is_available()
    precision = resolve_precision(options.precision)
    return TrainingArguments(
        output_dir=str(partial),
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        warmup_steps=_WARM_UP,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        train_sampling_strategy="group_by_length",
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        logging_steps=every,
        load_best_model_at_end=True,
        metric_for_best_model="macro_f1",
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,
        seed=options.seed,
        report_to="none",
    )


def resolve_precision(wanted: str) -> str:
    """Return the precision to train at. For auto that is what the hardware multiplies fast.

    bf16 on a GPU with it or a CPU that multiplies it in hardware, fp16 on other GPUs, else fp32.
    """
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if cpu_flags() & _BF16_DOT_PRODUCT else "fp32"


def _dataset(
    tokenizer: Tokenizer, max_tokens: int, data: TrainingData, examples: Sequence[Example]
) -> Any:  # noqa: ANN401 - the Trainer takes any sequence, but is typed for torch's Dataset
    encodings = encode(tokenizer, [example.text for example in examples], max_tokens)
    return [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": target}
        for ids, target in zip(encodings, _targets(data, examples), strict=True)
    ]


def _targets(data: TrainingData, examples: Sequence[Example]) -> list[Any]:
    """Return what the loss wants: an index a text for one-of, else a 0 or 1 a label."""
    if data.task is Task.ONE_OF:
        return [data.labels.index(next(iter(example.labels))) for example in examples]
    return [[float(label in example.labels) for label in data.labels] for example in examples]


def _truth(data: TrainingData, targets: object) -> NDArray[np.bool_]:
    """Return targets as booleans, shape [texts, labels]."""
    if data.task is Task.ONE_OF:
        truth: NDArray[np.bool_] = np.arange(len(data.labels)) == np.asarray(targets)[:, None]
        return truth
    return np.array(targets, dtype=np.bool_)


def _thresholds(
    data: TrainingData, scores: NDArray[np.float32], truth: NDArray[np.bool_]
) -> list[float]:
    # For one-of the highest score wins. A threshold above zero would be a demand of the user, so none is fitted.
    if data.task is Task.ONE_OF:
        return [0.0] * scores.shape[1]
    return choose_thresholds(scores, truth)


def _measure(
    data: TrainingData,
    scores: NDArray[np.float32],
    thresholds: Sequence[float],
    truth: NDArray[np.bool_],
) -> Quality:
    given = [set(decide(data.task, data.labels, row, thresholds)) for row in scores.tolist()]
    true = [{label for label, has in zip(data.labels, row, strict=True) if has} for row in truth]
    return measure(data.labels, true, given)


def _save(
    options: FinetuneOptions,
    data: TrainingData,
    model: DistilBertForSequenceClassification,
    tokenizer: Tokenizer,
    folder: Path,
) -> Quality:
    model.save_pretrained(folder)
    _as_transformers(tokenizer, options.max_tokens).save_pretrained(folder)
    # It is loaded anew, because the Trainer has wrapped the model in its own precision.
    checkpoint = Checkpoint.load(folder)
    scores = checkpoint.scores([example.text for example in data.dev], options.max_tokens)
    truth = _truth(data, _targets(data, data.dev))
    thresholds = _thresholds(data, scores, truth)
    quality = _measure(data, scores, thresholds, truth)
    checkpoint.model.config.thresholds = dict(zip(data.labels, thresholds, strict=True))
    checkpoint.model.config.save_pretrained(folder)
    training = {"options": _plain(options), "dev": quality.model_dump()}
    (folder / "training.json").write_text(json.dumps(training, indent=2) + "\n", encoding="utf-8")
    return quality


def _as_transformers(tokenizer: Tokenizer, max_tokens: int) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers types few
        tokenizer_object=tokenizer, model_max_length=max_tokens, **_SPECIAL_TOKENS
    )


def _open_partial(options: FinetuneOptions) -> Path:
    """Make the folder of the run, or find it unfinished; only what the same run wrote is resumed."""
    partial = options.output.with_name(options.output.name + ".partial")
    identity = partial / "run.json"
    digests = [file_sha256(path) for path in (options.train, options.dev)]
    run = json.dumps({"options": _plain(options), "data": digests}, indent=2)
    # An empty folder is one that a kill left before the run had an identity.
    if partial.exists() and any(partial.iterdir()):
        owned = partial.stat().st_uid == os.getuid()
        if not owned or not identity.exists() or identity.read_text(encoding="utf-8") != run:
            raise ConfigurationError(
                f"{partial} holds an unfinished run with other options or data",
                "remove it, or name another -o",
            )
        shutil.rmtree(partial / "result", ignore_errors=True)
        return partial
    partial.mkdir(mode=0o700, parents=True, exist_ok=True)
    identity.write_text(run, encoding="utf-8")
    return partial


def _plain(options: FinetuneOptions) -> dict[str, object]:
    """Return the options as JSON has them, without the folders of this machine."""
    plain = asdict(options) | {"output": options.output.name}
    plain |= {"train": options.train.name, "dev": options.dev.name}
    if Path(options.base).exists():
        plain["base"] = Path(options.base).name
    names = options.form.label_names
    plain["form"] = asdict(options.form) | {"label_names": names.name if names else None}
    return plain
