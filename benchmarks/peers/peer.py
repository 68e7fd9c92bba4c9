"""The inside of a peer's process: it loads a model, then answers commands, each a line of JSON.

    {"texts": "distinct", "number": 1024, "at_hand": 32}  labels them:
                            {"messages": n, "seconds": s, "cpu": of which this process had the core}
    {"logits": 256}         of so many texts: {"alone": [[...]], "batched": [[...]]}

It runs in the environment of the peer, and imports the standard library alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# Texts that are padded to the longest of them, and run together.
PADDED = 32


class Model(Protocol):
    """What a peer has loaded; one call of `labels` takes at most `most` texts."""

    @property
    def most(self) -> int: ...

    def labels(self, texts: Sequence[str]) -> Sequence[str]: ...

    def logits(self, texts: Sequence[str]) -> list[list[float]]: ...


def serve(load: Callable[[Path, str], Model]) -> None:
    """Load the model of a folder, of the kind that the command line names, and answer."""
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    folder = Path(sys.argv[1])
    model = load(folder, sys.argv[2])
    texts = json.loads((folder / "texts.json").read_bytes())
    print(json.dumps({"loaded": sys.argv[2]}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(model, texts, json.loads(line))), file=answers, flush=True)


def answer(
    model: Model, texts: Mapping[str, Sequence[str]], command: Mapping[str, Any]
) -> dict[str, Any]:
    if number := command.get("logits"):
        some = texts["distinct"][:number]
        alone = [row for text in some for row in model.logits([text])]
        parts = [some[begin : begin + PADDED] for begin in range(0, len(some), PADDED)]
        return {"alone": alone, "batched": [row for part in parts for row in model.logits(part)]}
    some = texts[command["texts"]][: command["number"]]
    begun, cpu = time.perf_counter(), time.process_time()
    label(model, some, command["at_hand"])
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    return {"messages": len(some), "seconds": seconds, "cpu": cpu}


def label(model: Model, texts: Sequence[str], at_hand: int) -> list[str]:
    """Label texts of which so many are at hand at a time.

    Where these are more than a call takes they are sorted by length first, so that little is
    padded: what a careful user does.
    """
    labels = [""] * len(texts)
    for begin in range(0, len(texts), at_hand):
        order = list(range(begin, min(begin + at_hand, len(texts))))
        if at_hand > model.most:
            order.sort(key=lambda index: len(texts[index]))
        for start in range(0, len(order), model.most):
            part = order[start : start + model.most]
            for index, name in zip(part, model.labels([texts[i] for i in part]), strict=True):
                labels[index] = name
    return labels
