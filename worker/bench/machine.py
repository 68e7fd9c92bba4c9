"""What a benchmark ran on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import onnxruntime


def machine() -> str:
    """Return processor, cores and versions in a line."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        entries = (line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines())
        known = {name.strip(): value.strip() for name, _, value in entries}
        numbers = f"family {known.get('cpu family')}, model {known.get('model')}"
        processor = f"{known.get('model name', processor)} ({numbers})"
    cores = len(os.sched_getaffinity(0))
    versions = f"Python {platform.python_version()}, onnxruntime {onnxruntime.__version__}"
    return f"{processor}, {cores} cores, {versions}"
