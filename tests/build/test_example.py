"""examples/own_model.py, on a base made on the spot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.test_examples import output_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
def test_a_model_of_ones_own_is_trained_prepared_and_used(base: Path, tmp_path: Path) -> None:
    options = [
        "--base",
        str(base),
        "--epochs",
        "8",
        "--learning-rate",
        "5e-3",
        "--batch-size",
        "16",
    ]
    options += ["--max-tokens", "64", "--precision", "fp32"]
    lines = output_of("own_model.py", tmp_path / "out", *options, folder=tmp_path)
    assert lines[-3:] == [
        "'selling a shield for gold': trade",
        "'how do I get to the bridge': help",
        "'join our party': team",
    ]
