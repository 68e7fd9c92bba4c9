"""The programs in examples/, run as a user runs them.

Two stand beside what they need: tests/kafka/test_example.py and tests/build/test_example.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

EXAMPLES = Path(__file__).parents[1] / "examples"


def output_of(name: str, *arguments: str | os.PathLike[str], folder: Path) -> list[str]:
    """Run an example in a folder of its own, and return the lines that it prints."""
    ended = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def test_the_readme_names_every_example() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    programs = {path.name for path in EXAMPLES.glob("*.py")}
    assert len(programs) == 4
    assert all(f"[{name}]({name})" in text for name in programs)


def test_every_example_says_how_to_run_it() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert f"Run it: python examples/{path.name}" in path.read_text(encoding="utf-8")


def test_python_api(tmp_path: Path) -> None:
    lines = output_of("python_api.py", folder=tmp_path)
    assert len(lines) == 6
    assert ": joy (" in lines[1]
    assert ": anger (" in lines[2]
    assert lines[4:] == [
        "The first text alone has equal scores: True",
        "Joy is there at a threshold of 0.999: False",
    ]


def test_label_a_file(tmp_path: Path) -> None:
    lines = output_of("label_a_file.py", tmp_path / "out", folder=tmp_path)
    assert len(lines) == 5
    assert lines[0] == "1: joy: we won, I am so happy right now"
    assert [line.split(":")[0] for line in lines[3:]] == [
        "line 3 is a dead letter (no-text)",
        "line 4 is a dead letter (not-json)",
    ]
    # A second run writes the same over what is there.
    assert output_of("label_a_file.py", tmp_path / "out", folder=tmp_path) == lines
