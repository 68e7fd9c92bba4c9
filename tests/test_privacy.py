"""Nothing of the work leaves the machine, or stays behind on it unasked."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def left_behind(program: str, home: Path) -> list[Path]:
    """Return the files that a program leaves in a home folder that was empty."""
    # Nothing else: onnxruntime is silent where it sees that it is tested.
    environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    return [path for path in home.rglob("*") if path.is_file()]


def test_the_engine_tells_nobody_of_itself(tmp_path: Path) -> None:
    program = "from worker import Classifier; Classifier.load().classify(['gg'])"
    assert left_behind(program, tmp_path) == []


def test_onnxruntime_alone_keeps_an_identifier_to_tell_of_itself(tmp_path: Path) -> None:
    assert left_behind("import onnxruntime; onnxruntime.SessionOptions()", tmp_path)
