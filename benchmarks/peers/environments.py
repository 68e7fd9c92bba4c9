"""Each peer's own virtual environment, made from its pinned requirements, and its processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING

from benchmarks.cores import on_core

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / "build" / "peers"
LAST_LINES = 5
# One thread each, nothing asked of a model hub, and nothing is reported to the makers of the libraries:
# OpenVINO's telemetry has no switch but the sign of a continuous integration.
VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "CI": "true",
    "PYTHONPATH": str(ROOT),
}


class NotMeasuredError(Exception):
    """Why a peer could not be measured, in words for the reader."""


def python_of(requirements: str | None) -> Path:
    """Return the Python of an environment, made now if there is none for these requirements.

    None is the environment of the worker itself.

    Raises:
        NotMeasuredError: the environment cannot be made.

    """
    if requirements is None:
        return Path(sys.executable)
    pins = Path(__file__).with_name(f"{requirements}.txt")
    folder = ENVIRONMENTS / requirements
    python, made_from = folder / "bin" / "python", folder / pins.name
    if not made_from.exists() or made_from.read_bytes() != pins.read_bytes():
        print(f"making the environment of {pins.name}", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        _run(sys.executable, "-m", "venv", str(folder), what="no virtual environment can be made")
        pip = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        _run(*pip, "-r", str(pins), what=f"pip cannot install {pins.name}")
        # Last, so that what was broken off is made again.
        made_from.write_bytes(pins.read_bytes())
    return python


def _run(*command: str, what: str) -> None:
    try:
        subprocess.run(command, check=True)  # noqa: S603 - Python of this machine
    except (OSError, subprocess.CalledProcessError):
        raise NotMeasuredError(what) from None


def start(
    command: Sequence[str], *, core: int, folder: Path, stdout: int | IO[bytes], log: IO[bytes]
) -> subprocess.Popen[str]:
    """Start a command on a core; what it writes beside its streams goes to the folder."""
    with on_core(core):
        return subprocess.Popen(  # noqa: S603 - a module of this project
            command,
            env=os.environ | VARIABLES,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=log,
            text=True,
        )


def end_of(log: Path, reason: str = "its process ended") -> NotMeasuredError:
    """Return why a process could not be measured, and show what it said last."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    print(f"{log.stem}: {reason}:", *lines[-LAST_LINES:], sep="\n", file=sys.stderr)
    return NotMeasuredError(reason)
