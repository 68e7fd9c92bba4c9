"""The engine by onnxruntime: exact on CPUs without VNNI, in one thread, and strict with graphs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.conftest import sign
from tests.inference.test_engine import random_batch
from worker.errors import ArtifactError
from worker.inference.artifact import BUILT_IN_MODEL, MANIFEST_FILE, load_artifact
from worker.inference.onnxruntime_engine import (
    PROBE_FILE,
    OnnxruntimeEngine,
    int8_products_saturate,
)

if TYPE_CHECKING:
    from pathlib import Path

    from worker.inference.artifact import Artifact


@pytest.fixture(scope="module")
def engine() -> OnnxruntimeEngine:
    return OnnxruntimeEngine(load_artifact(BUILT_IN_MODEL))


@pytest.mark.skipif(int8_products_saturate(), reason="this CPU takes the exact path anyway")
def test_the_path_for_cpus_without_vnni_gives_the_same_bits(
    engine: OnnxruntimeEngine, artifact: Artifact
) -> None:
    exact = OnnxruntimeEngine(artifact, exact_products=True)
    batch = [*random_batch(16, 9), *random_batch(3, 4)]
    assert exact.run(batch).tobytes() == engine.run(batch).tobytes()


@pytest.mark.skipif(not shutil.which("qemu-x86_64"), reason="needs Debian's qemu-user")
def test_a_cpu_without_vnni_is_recognized_and_gives_the_same_bits(
    engine: OnnxruntimeEngine, tmp_path: Path
) -> None:
    batch = [*random_batch(3, 7), *random_batch(1, 4)]
    program = (
        "import numpy as np, worker.inference.artifact as a, worker.inference.onnxruntime_engine as e;"
        "engine = e.OnnxruntimeEngine(a.load_artifact(a.BUILT_IN_MODEL));"
        "assert engine.exact_products;"
        f"np.save('logits.npy', engine.run({batch}))"
    )
    command = ["qemu-x86_64", "-cpu", "Haswell", sys.executable, "-c", program]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert np.load(tmp_path / "logits.npy").tobytes() == engine.run(batch).tobytes()


def test_the_engine_runs_on_one_thread(engine: OnnxruntimeEngine) -> None:
    options = engine._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)


def test_a_graph_that_onnxruntime_cannot_load_is_an_artifact_error(model_copy: Path) -> None:
    (model_copy / "model.onnx").write_bytes(b"no graph")
    sign(model_copy, "model.onnx")
    with pytest.raises(ArtifactError, match="cannot load"):
        OnnxruntimeEngine(load_artifact(model_copy))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("location", "others.bin"),
        ("location", "../others.bin"),
        ("location", "*/_ORT_MEM_ADDR_/*"),
        ("offset", str(1 << 40)),
        ("length", str(1 << 40)),
    ],
)
def test_a_graph_reads_no_bytes_but_its_verified_weights(
    model_copy: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: str
) -> None:
    onnx = pytest.importorskip("onnx")
    path = model_copy / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    (entry,) = (entry for entry in tensor.external_data if entry.key == key)
    entry.value = value
    path.write_bytes(model.SerializeToString())
    sign(model_copy, "model.onnx")
    for folder in (model_copy, model_copy.parent):
        shutil.copy(model_copy / "weights.bin", folder / "others.bin")
    monkeypatch.chdir(model_copy)
    with pytest.raises(ArtifactError, match="cannot load"):
        OnnxruntimeEngine(load_artifact(model_copy))


def test_a_graph_of_another_version_is_an_artifact_error(model_copy: Path) -> None:
    (model_copy / "model.onnx").write_bytes(PROBE_FILE.read_bytes())
    sign(model_copy, "model.onnx")
    with pytest.raises(ArtifactError, match=r"not a graph of this version.*prepare the model anew"):
        OnnxruntimeEngine(load_artifact(model_copy))


def test_a_manifest_with_more_labels_than_the_graph_is_an_artifact_error(model_copy: Path) -> None:
    path = model_copy / MANIFEST_FILE
    manifest = json.loads(path.read_bytes())
    manifest["labels"].append("boredom")
    manifest["thresholds"]["boredom"] = 0.5
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ArtifactError, match="does not give 8 logits"):
        OnnxruntimeEngine(load_artifact(model_copy))
