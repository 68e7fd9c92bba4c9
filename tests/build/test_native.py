"""The native engine computes what the graph does, for models of many sizes, with every backend alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.build.conftest import prepared
from tests.conftest import NATIVE
from tests.inference.test_native_engine import BACKENDS, EMULATED, WITH_EMULATED
from worker.inference.engine import load_model, open_engine
from worker.inference.native_engine import NativeEngine
from worker.inference.onnxruntime_engine import OnnxruntimeEngine

if TYPE_CHECKING:
    from pathlib import Path

    from tests.build.conftest import TinyCheckpoint
    from worker.inference.artifact import Artifact

# Layers, width, heads, and width of the feed-forward: fewer heads than lanes and as many, sizes that fill
# no panel of weights and no tile.
SIZES = [(1, 16, 1, 16), (2, 32, 4, 64), (1, 48, 3, 80), (2, 64, 16, 16), (3, 96, 2, 208)]
# The same numbers are rounded at other places, and now and then to another int8.
MOST_ERROR = 0.02


@pytest.fixture(scope="module", params=SIZES, ids=str)
def artifact(
    request: pytest.FixtureRequest,
    tiny_checkpoint: TinyCheckpoint,
    tmp_path_factory: pytest.TempPathFactory,
) -> Artifact:
    layers, dim, heads, inner = request.param
    labels = [f"label-{number}" for number in range(18)]
    folder = tiny_checkpoint(
        labels=labels, n_layers=layers, dim=dim, n_heads=heads, hidden_dim=inner
    )
    return prepared(folder, tmp_path_factory.mktemp("model"))


def batch_for(artifact: Artifact) -> list[list[int]]:
    generator = np.random.default_rng(0)
    lengths = [*range(1, artifact.manifest.max_tokens + 1), *[5] * 30]
    return [generator.integers(0, 50, length).tolist() for length in lengths]


@NATIVE
def test_logits_are_those_of_the_graph(artifact: Artifact) -> None:
    native = open_engine(load_model(artifact.folder, kind="native"))
    batch = batch_for(artifact)
    found, expected = native.run(batch), OnnxruntimeEngine(artifact).run(batch)
    assert np.linalg.norm(found - expected) < MOST_ERROR * np.linalg.norm(expected)


@NATIVE
@WITH_EMULATED
def test_backends_give_the_same_bits(artifact: Artifact) -> None:
    batch = batch_for(artifact)
    expected = NativeEngine(artifact).run(batch).tobytes()
    for backend in BACKENDS:
        assert NativeEngine(artifact, backend, EMULATED).run(batch).tobytes() == expected


@NATIVE
def test_a_model_of_other_sizes_is_left_to_onnxruntime(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    model = prepared(tiny_checkpoint(dim=36, hidden_dim=53), tmp_path)
    assert load_model(model.folder).computation == ""
