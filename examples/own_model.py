"""Make a model for labels of your own, and label texts with it.

The example writes labelled texts, trains a checkpoint on them, turns it into an int8 model folder,
and loads that. Real data need some hundred texts a label; these are put together from a few words.
It needs the extra `build`, and takes minutes, most of them to fetch the base model the first time.

Run it: python examples/own_model.py [FOLDER to write to, default: build/example-model]
            [options of `worker finetune`, such as --base CHECKPOINT or --epochs 5]
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from worker import Classifier

if TYPE_CHECKING:
    from collections.abc import Sequence

# What players ask each other for: a pattern for each label, and what may stand in it.
PATTERNS = {
    "trade": (
        "selling {} for gold",
        "who buys {} today",
        "trade my {} for a shield",
        "price of {}",
    ),
    "help": ("how do I get {}", "where can we find {}", "I am lost near {}", "what does {} do"),
    "team": ("we need one more with {}", "join our team for {}", "group up at {}", "party for {}"),
}
THINGS = ("the tower", "a red key", "the old bridge", "iron boots", "a map", "the north gate")
ENDINGS = ("", " please", " now", " anyone")
TEXTS_TO_CHOOSE_BY = 72


def main() -> None:
    """Train, prepare and use a model."""
    arguments = sys.argv[1:]
    first_is_folder = bool(arguments) and not arguments[0].startswith("-")
    folder = Path(arguments.pop(0) if first_is_folder else "build/example-model")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    train, dev = write_examples(folder)

    checkpoint, model = folder / "checkpoint", folder / "model"
    run("finetune", "--train", train, "--dev", dev, "-o", checkpoint, *arguments)
    # --eval is the quality gate: nothing is written if int8 loses too much of the quality.
    run("prepare", checkpoint, "-o", model, "--eval", dev, "--calibrate", train)

    texts = ["selling a shield for gold", "how do I get to the bridge", "join our party"]
    with Classifier.load(model) as classifier:
        for text, result in zip(texts, classifier.classify(texts), strict=True):
            print(f"{text!r}: {', '.join(result.labels) or 'no label'}")


def write_examples(folder: Path) -> tuple[Path, Path]:
    """Write texts to train on and others to choose by, as JSON lines, and return both files."""
    rows = [
        {"text": pattern.format(thing) + ending, "labels": [label]}
        for label, patterns in PATTERNS.items()
        for pattern in patterns
        for thing in THINGS
        for ending in ENDINGS
    ]
    random.Random(1).shuffle(rows)  # noqa: S311 - the order of examples is no secret
    return (
        write_lines(folder / "train.jsonl", rows[TEXTS_TO_CHOOSE_BY:]),
        write_lines(folder / "dev.jsonl", rows[:TEXTS_TO_CHOOSE_BY]),
    )


def write_lines(path: Path, rows: Sequence[object]) -> Path:
    """Write one JSON value a line, and return the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(*arguments: str | Path) -> None:
    """Run a command of the worker, and end where it fails; it has said why."""
    command = [sys.executable, "-m", "worker", *map(str, arguments)]
    ended = subprocess.run(command, check=False)  # noqa: S603 - the command is ours
    if ended.returncode:
        sys.exit(ended.returncode)


if __name__ == "__main__":
    main()
