"""Label a file of chat messages with `worker replay`, and look at what could not be labelled.

A record that cannot be labelled becomes a dead letter: a line with the reason, the place, and the
original bytes. The command then ends with exit code 3, and all other records have their labels.

Run it: python examples/label_a_file.py [FOLDER to write to, default: build/example]
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CHAT = """\
{"id": "1", "user": "otter_7", "text": "we won, I am so happy right now"}
{"id": "2", "user": "lantern", "text": "the gate opens at nine"}
{"id": "3", "user": "lantern", "text": 404}
{"id": "4", "user": "otter_7", "tex
{"id": "5", "user": "birch", "text": "this is disgusting, report him"}
"""
# `worker --help` has the table of exit codes.
DONE_WITH_DEAD_LETTERS = 3


def main() -> int:
    """Write a chat of five lines, two of which are broken, and label it."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/example")
    folder.mkdir(parents=True, exist_ok=True)
    chat, labels = folder / "chat.jsonl", folder / "labels.jsonl"
    chat.write_text(CHAT, encoding="utf-8")

    command = [sys.executable, "-m", "worker", "replay", str(chat), "-o", str(labels)]
    options = ["--include-text", "--overwrite", "--log-level", "warning"]
    ended = subprocess.run([*command, *options], check=False)  # noqa: S603 - the command is ours
    if ended.returncode != DONE_WITH_DEAD_LETTERS:
        return ended.returncode

    for line in labels.read_text(encoding="utf-8").splitlines():
        label = json.loads(line)
        print(f"{label['id']}: {', '.join(label['labels'])}: {label['text']}")
    for line in (folder / "labels.jsonl.dead.jsonl").read_text(encoding="utf-8").splitlines():
        letter = json.loads(line)
        print(f"line {letter['line']} is a dead letter ({letter['kind']}): {letter['reason']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
