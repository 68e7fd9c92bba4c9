"""The ladder from a padded BERT to this worker's engine and cache, every rung real, in one run.

    python -m benchmarks.ladder [--texts chat.txt] [--rounds 5] [--write docs]

What a message takes on one CPU thread, tokenized beforehand on the lower rungs, with random weights,
which speed does not depend on:

    BERT-base and DistilBERT, every message padded to 128 tokens; DistilBERT at the message's own
    length; that in int8, by torch and by stock onnxruntime; the engine of this project, a message
    at a time and in batches; and all of the classifier, tokenizer and caches too.

The rungs take the same messages in turn, round by round; figures are medians of the rounds. The
last two rungs need many messages at a time and take more of the same chat. `--write` renews
ladder.json and ladder.svg in a folder. Needs the extra `build`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.engine import LABELS, SIZES, random_model, stock_session
from worker.bench.machine import machine
from worker.bench.picture import Bar, bars
from worker.build.checkpoint import quiet_transformers
from worker.build.prepare import GateLimits, PrepareOptions, prepare
from worker.defaults import TOKEN_BUDGET
from worker.demo.chat import ChatStream
from worker.inference.artifact import BUILT_IN_MODEL, TOKENIZER_FILE
from worker.inference.classifier import Classifier
from worker.inference.engine import load_model, open_engine
from worker.inference.tokens import TextTokenizer, cut_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from worker.inference.artifact import Artifact

PADDED = 128
# Of the chat: for rungs that take a message at a time, for batches, and for caches.
SINGLE, CHUNK, STREAM = 16, 2048, 20_000


@dataclass(frozen=True)
class Rung:
    """A way to label messages: its name, how many a call labels, and the call."""

    name: str
    messages: int
    call: Callable[[], object]


def artifact_of(model: torch.nn.Module, folder: Path, texts: Sequence[str]) -> Artifact:
    """Prepare a model with random weights, with the built-in tokenizer, calibrated on texts."""
    checkpoint = folder / "checkpoint"
    model.save_pretrained(checkpoint)  # type: ignore[operator]  # of transformers
    (checkpoint / TOKENIZER_FILE).write_bytes((BUILT_IN_MODEL / TOKENIZER_FILE).read_bytes())
    lines = (json.dumps({"text": text, "labels": []}) + "\n" for text in texts)
    (folder / "texts.jsonl").write_text("".join(lines), encoding="utf-8")
    anything = GateLimits(logit_error=float("inf"))
    options = PrepareOptions(
        checkpoint, folder / "model", calibrate_on=folder / "texts.jsonl", limits=anything
    )
    prepare(options)
    return load_model(folder / "model")


def ladder(texts: Sequence[str], folder: Path) -> list[Rung]:
    torch.set_num_threads(1)
    quiet_transformers()
    tokenizer = TextTokenizer(load_model(BUILT_IN_MODEL))
    tokens = [each.ids for each in tokenizer.encode(texts[:CHUNK])]
    single = [np.array([ids], dtype=np.int64) for ids in tokens[:SINGLE]]
    vocabulary = Tokenizer.from_file(str(BUILT_IN_MODEL / TOKENIZER_FILE)).get_vocab_size()
    distilbert = random_model(SIZES["base"], vocabulary)
    with warnings.catch_warnings():
        # torch means to drop its own quantization, which is what the ladder had.
        warnings.simplefilter("ignore")
        from torch.ao.quantization import quantize_dynamic  # noqa: PLC0415 - warns when imported

        torch_int8 = quantize_dynamic(distilbert, {torch.nn.Linear}, dtype=torch.qint8)  # type: ignore[no-untyped-call]
    artifact = artifact_of(distilbert, folder, texts[:CHUNK])
    engine, stock = open_engine(artifact), stock_session(distilbert, folder)
    more: dict[str, int] = {"num_labels": LABELS}
    bert = BertForSequenceClassification(BertConfig(vocab_size=vocabulary, **more)).eval()  # type: ignore[arg-type,no-untyped-call]
    batches = [token_ids for _, token_ids in cut_batches(tokens, TOKEN_BUDGET)]
    return [
        Rung("BERT-base, padded to 128", SINGLE, partial(in_torch, bert, single, PADDED)),
        Rung("DistilBERT, padded to 128", SINGLE, partial(in_torch, distilbert, single, PADDED)),
        Rung("DistilBERT, own length", SINGLE, partial(in_torch, distilbert, single)),
        Rung("int8, torch dynamic", SINGLE, partial(in_torch, torch_int8, single)),
        Rung(
            "int8, stock onnxruntime",
            SINGLE,
            lambda: [
                stock.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
                for ids in single
            ],
        ),
        Rung(
            "this engine, one by one",
            SINGLE,
            lambda: [engine.run([ids]) for ids in tokens[:SINGLE]],
        ),
        Rung("this engine, in batches", CHUNK, lambda: [engine.run(ids) for ids in batches]),
        Rung("all of it, with caches", STREAM, partial(classify, artifact, texts[:STREAM])),
    ]


@torch.inference_mode()
def in_torch(model: torch.nn.Module, single: Sequence[NDArray[np.int64]], pad_to: int = 0) -> None:
    for ids in single:
        mask = np.ones_like(ids)
        padding = ((0, 0), (0, max(0, pad_to - ids.shape[1])))
        model(
            input_ids=torch.from_numpy(np.pad(ids, padding)),
            attention_mask=torch.from_numpy(np.pad(mask, padding)),
        )


def classify(artifact: Artifact, texts: Sequence[str]) -> None:
    """Label a chat in chunks, with a memory that is empty at first."""
    classifier = Classifier(artifact)
    for begin in range(0, len(texts), CHUNK):
        classifier.classify(texts[begin : begin + CHUNK])


def measure(rungs: Sequence[Rung], rounds: int) -> dict[str, float]:
    """Return the milliseconds of a message for each rung."""
    seconds: dict[str, list[float]] = {rung.name: [] for rung in rungs}
    for number in range(rounds + 1):
        for rung in rungs:
            begun = time.perf_counter()
            rung.call()
            spent = (time.perf_counter() - begun) / rung.messages
            # The first round is for warming up.
            if number:
                seconds[rung.name].append(spent)
    return {name: 1000 * statistics.median(each) for name, each in seconds.items()}


def picture(times: dict[str, float]) -> str:
    rows = [
        Bar(name, each, f"{each:.3g} ms", stands_out=name.startswith(("this", "all")))
        for name, each in times.items()
    ]
    title = "Time to label a chat message on one CPU thread (logarithmic)"
    return bars(title, rows, machine())


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the ladder on this machine.")
    parser.add_argument("--texts", type=Path, help="a message a line; default: made up")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="for ladder.json, ladder.svg")
    options = parser.parse_args()
    texts = list(islice(ChatStream(seed=1).texts(), STREAM))
    if options.texts:
        texts = [t for t in options.texts.read_text(encoding="utf-8").splitlines() if t][:STREAM]
    with tempfile.TemporaryDirectory() as name:
        times = measure(ladder(texts, Path(name)), options.rounds)
    print(machine())
    first = next(iter(times.values()))
    print(f"{'':28}{'ms a message':>14}{'faster than the first':>23}")
    for name, milliseconds in times.items():
        print(f"{name:28}{milliseconds:14.3f}{first / milliseconds:23,.1f}")
    if options.write:
        content = {"machine": machine(), "milliseconds": times}
        text = json.dumps(content, indent=2) + "\n"
        (options.write / "ladder.json").write_text(text, encoding="utf-8")
        svg = picture(times)
        (options.write / "ladder.svg").write_text(svg, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
