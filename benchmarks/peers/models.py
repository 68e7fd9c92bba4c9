"""What all peers are given: the same texts, and one model in the forms that they read."""

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import torch
from tokenizers import Tokenizer

from benchmarks.engine import SIZES, random_model, stock_session
from benchmarks.ladder import artifact_of
from benchmarks.peers.tokenized import MOST_TOKENS
from worker.build.checkpoint import quiet_transformers
from worker.demo.chat import ChatStream
from worker.inference.artifact import BUILT_IN_MODEL, TOKENIZER_FILE, load_artifact
from worker.inference.tokens import TextTokenizer

if TYPE_CHECKING:
    from pathlib import Path

MADE_UP = 40_000
CALIBRATE_ON = 2000


class Texts(NamedTuple):
    """A chat in its order; and of texts with the same tokens the first, in the same order."""

    stream: list[str]
    distinct: list[str]


def read_texts(path: Path | None) -> Texts:
    """Read a message a line; without a path, make some up."""
    if path is None:
        stream = list(islice(ChatStream(seed=1).texts(), MADE_UP))
    else:
        stream = [line for line in path.read_text(encoding="utf-8").splitlines() if line]
    tokens = TextTokenizer(load_artifact(BUILT_IN_MODEL)).encode(stream)
    # So that no peer is ahead because it computes once what is the same for the model.
    first: dict[tuple[int, ...], str] = {}
    for (ids, _), text in zip(tokens, stream, strict=True):
        first.setdefault(tuple(ids), text)
    return Texts(stream, list(first.values()))


def make_files(folder: Path, size: str, texts: Texts) -> None:
    """Write `texts.json`, `checkpoint`, `model` (ours), `plain.onnx` and `quantized.onnx`."""
    torch.set_num_threads(1)
    quiet_transformers()
    (folder / "texts.json").write_text(json.dumps(texts._asdict()), encoding="utf-8")
    vocabulary = Tokenizer.from_file(str(BUILT_IN_MODEL / TOKENIZER_FILE)).get_vocab_size()
    model = random_model(SIZES[size], vocabulary)
    artifact_of(model, folder, texts.distinct[:CALIBRATE_ON])
    limits = json.dumps({"model_max_length": MOST_TOKENS})
    (folder / "checkpoint" / "tokenizer_config.json").write_text(limits, encoding="utf-8")
    stock_session(model, folder)
