"""The model of one int8 product that the engine brings along."""

from __future__ import annotations

from worker.build.probe import saturation_probe
from worker.inference.onnxruntime_engine import PROBE_FILE


def test_the_file_is_what_its_code_writes() -> None:
    assert PROBE_FILE.read_bytes() == saturation_probe()
