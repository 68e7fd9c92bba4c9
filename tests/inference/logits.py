"""Writes logits.json anew, after a change of `COMPUTATION`: python -m tests.inference.logits."""

from __future__ import annotations

import json
from pathlib import Path

from worker.inference.artifact import BUILT_IN_MODEL
from worker.inference.engine import load_model
from worker.inference.native_engine import COMPUTATION, NativeEngine
from worker.inference.tokens import TextTokenizer

# Logits of some texts as hexadecimal floats: the same on every machine.
LOGITS = Path(__file__).with_name("logits.json")
TEXTS = [
    *("", "gg", "gg wp", "lol", "?", "no", "😂😂😂", "I am so sad today", "that was scary"),
    *("WHY would you do that", "I love this so much ❤️", "meh.", "zzz " * 30, "ok " * 400),
    "das war ein schöner abend mit euch allen",
    "the patch notes say that nothing changed, and still everything feels different to me",
    "she laughed, he cried, and nobody in the whole channel knew what to say about it any more",
]


def main() -> None:
    artifact = load_model(BUILT_IN_MODEL, kind="native")
    logits = NativeEngine(artifact).run([ids for ids, _ in TextTokenizer(artifact).encode(TEXTS)])
    rows = [[value.hex() for value in row] for row in logits.tolist()]
    content = {"computation": COMPUTATION, "logits": dict(zip(TEXTS, rows, strict=True))}
    LOGITS.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
