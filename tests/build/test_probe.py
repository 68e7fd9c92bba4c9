"""The models of one int8 product that the engine brings along."""

from __future__ import annotations

from worker.bench.peak import PEAK_FILE
from worker.build.probe import peak_probe, saturation_probe
from worker.inference.engine import PROBE_FILE


def test_the_files_are_what_their_code_writes() -> None:
    assert PROBE_FILE.read_bytes() == saturation_probe()
    assert PEAK_FILE.read_bytes() == peak_probe()
