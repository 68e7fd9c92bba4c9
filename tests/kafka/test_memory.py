"""A worker's memory does not depend on how far it is behind."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kafka.broker import wait_until
from tests.kafka.raw import RawProducer
from tests.record_batches import Raw, record_batch

if TYPE_CHECKING:
    from tests.kafka.stage import Stage, WorkerProcess

LAG = 1_000_000
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
def test_memory_stays_flat_with_a_million_records_of_lag(stage: Stage) -> None:
    records = [
        Raw(b'{"text": "message %d"}' % n, b"key-%d" % (n % 3)) for n in range(DIFFERENT_TEXTS)
    ]
    batch = record_batch(records, timestamp=int(time.time() * 1000))
    with RawProducer(stage.kafka) as producer:
        for number in range(LAG // DIFFERENT_TEXTS):
            producer.append(stage.input, number % stage.partitions, batch)
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
