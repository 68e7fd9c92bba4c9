"""Fine-tuning learns, is repeatable, and continues where it was killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    EarlyStoppingCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from tests.build.conftest import LABELS, as_transformers, tiny_tokenizer, write_jsonl
from worker.build.checkpoint import Checkpoint
from worker.build.finetune import FinetuneOptions, finetune, resolve_precision
from worker.cli import main
from worker.decisions import Task
from worker.errors import ConfigurationError, LabelledDataError, WorkerError
from worker.evaluate import evaluate
from worker.labelled import LabelledFormat

if TYPE_CHECKING:
    from pathlib import Path

    from tests.build.conftest import LabelledFiles, Trained

# Two checkpoints into a run of the fixture `options`, which saves every six steps.
STOP_AT = 12
KILLED_ONCE_SAVED = """
import os, signal, sys
from transformers import EarlyStoppingCallback
from worker.cli import main

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

EarlyStoppingCallback.on_save = die
main(sys.argv[1:])
"""


@pytest.fixture
def options(base: Path, labelled: dict[Task, LabelledFiles], tmp_path: Path) -> FinetuneOptions:
    """Return options of a run of 39 steps."""
    files = labelled[Task.SEVERAL]
    return FinetuneOptions(
        files.train,
        files.dev,
        tmp_path / "new",
        base=str(base),
        epochs=3,
        learning_rate=1e-2,
        batch_size=16,
        max_tokens=32,
        precision="fp32",
    )


@pytest.fixture
def unfinished(options: FinetuneOptions, monkeypatch: pytest.MonkeyPatch) -> FinetuneOptions:
    """Return the options of a run that was interrupted after its second checkpoint."""

    def stop(_: object, __: TrainingArguments, state: TrainerState, ___: TrainerControl, **____: object) -> None:
        if state.global_step >= STOP_AT:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EarlyStoppingCallback, "on_save", stop)
        with pytest.raises(KeyboardInterrupt):
            finetune(options)
    return options


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list of the training steps done from now on."""
    done: list[int] = []

    def count(_: object, __: TrainingArguments, state: TrainerState, ___: TrainerControl, **____: object) -> None:
        done.append(state.global_step)

    monkeypatch.setattr(EarlyStoppingCallback, "on_step_end", count)
    return done
