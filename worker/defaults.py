"""Defaults that the Python API, the settings and the benchmarks share; quick to import."""

from __future__ import annotations

from typing import Final

# How many records a chunk holds at most.
CHUNK_RECORDS: Final = 2048
TOKEN_BUDGET: Final = 512
MEMORY_ENTRIES: Final = 200_000
DISK_BYTES: Final = 256 * 2**20
MAX_ID_LENGTH: Final = 4096
