"""What the CPU offers, as far as that decides the speed or the last place of a score."""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path

_DECIDES_ROUNDING = frozenset(
    {"avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "sve"}
)


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """Return the instruction set flags that Linux reports; empty where it reports none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return frozenset(value.split())
    return frozenset()


def cpu_kind() -> str:
    """Return the kind of CPU: the architecture, and the instructions that decide rounding.

    With one version of onnxruntime, equal kinds give scores that are equal to the last bit.
    """
    return " ".join([platform.machine(), *sorted(cpu_flags() & _DECIDES_ROUNDING)])
