"""A worker's memory does not depend on how far it is behind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kafka.broker import wait_until

if TYPE_CHECKING:
    from tests.kafka.stage import Stage, WorkerProcess

LAG = 1_000_000
SLICE = 100_000
DIFFERENT_TEXTS = 625
# Fewer than there are texts: the table in the process is full before long.
MEMORY_ENTRIES = "500"
# Were a record to leave a single reference behind, a half of them would leave 4 MB.
TOLERANCE_KB = 4_000
PATIENCE = 1200.0


def resident_kb(worker: WorkerProcess) -> int:
    lines = Path(f"/proc/{worker.pid}/status").read_text(encoding="utf-8").splitlines()
    (size,) = (line.split()[1] for line in lines if line.startswith("VmRSS:"))
    return int(size)


@pytest.mark.slow
def test_memory_stays_flat_with_a_million_records_of_lag(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Measuring coverage takes memory of its own, and half of the time.
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
    values = [b'{"text": "message %d"}' % number for number in range(DIFFERENT_TEXTS)]
    for _ in range(LAG // SLICE):
        stage.produce_values(values * (SLICE // DIFFERENT_TEXTS), linger_ms=20)
    stage.settings |= {
        "CACHE__ENABLED": "true",
        "CACHE__DIRECTORY": str(stage.folder / "cache"),
        "CACHE__MEMORY_ENTRIES": MEMORY_ENTRIES,
    }
    worker = stage.worker()
    sizes: list[tuple[int, int]] = []

    def done() -> bool:
        committed = stage.kafka.committed(stage.group, stage.input)
        sizes.append((sum(committed.values()), resident_kb(worker)))
        return sizes[-1][0] == LAG

    wait_until(done, "a million labels", PATIENCE)
    assert worker.stop() == 0
    early = [size for records, size in sizes if LAG // 10 < records <= LAG // 2]
    late = [size for records, size in sizes if records > LAG // 2]
    print(sizes[:: max(1, len(sizes) // 40)])
    assert max(late) < max(early) + TOLERANCE_KB
