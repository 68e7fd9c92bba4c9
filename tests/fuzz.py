"""Runs all tests that state an invariant, again and again, with new examples each time.

Examples that were of interest are kept in `build/fuzz`, and tried first the next time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
# Those that need torch, or a minute for each example, are left out.
LEFT_OUT: Final = ("tests/build", "tests/bench", "tests/kafka", "tests/observe", "tests/compose")


def main() -> int:
    """Return 1 as soon as an example breaks an invariant, 0 when the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    ends = time.monotonic() + parser.parse_args().seconds
    pytest = [sys.executable, "-m", "pytest", "-q", "--no-header", "-x", "-n", "2"]
    ignored = [f"--ignore={folder}" for folder in LEFT_OUT]
    rounds = 0
    while time.monotonic() < ends:
        done = subprocess.run(
            [*pytest, *ignored, "tests"], cwd=ROOT, env={**os.environ, "FUZZ": "1"}, check=False
        )
        if done.returncode:
            return 1
        rounds += 1
        print(f"round {rounds} found nothing", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
