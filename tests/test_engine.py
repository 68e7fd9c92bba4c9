"""The engine is bit-exact: a text's logits are the same bytes in every batch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import POISON, sign
from worker.artifact import MANIFEST_FILE, load_artifact
from worker.engine import Engine, int8_products_saturate
from worker.errors import ArtifactError, EngineError
from worker.tokens import TextTokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from worker.artifact import Artifact

TOKENS = st.integers(min_value=1000, max_value=30_000)


@st.composite
def batches(draw: st.DrawFn) -> list[list[int]]:
    length = draw(st.integers(1, 20))
    row = st.lists(TOKENS, min_size=length, max_size=length)
    return draw(st.lists(row, min_size=1, max_size=40))


@settings(max_examples=60)
@given(batch=batches(), data=st.data())
def test_logits_do_not_depend_on_the_batch_or_the_order(
    engine: Engine, batch: list[list[int]], data: st.DataObject
) -> None:
    together = engine.run(np.array(batch, dtype=np.int64))
    alone = np.concatenate([engine.run(np.array([ids], dtype=np.int64)) for ids in batch])
    order = data.draw(st.permutations(range(len(batch))))
    shuffled = engine.run(np.array(batch, dtype=np.int64)[order])
    assert together.tobytes() == alone.tobytes()
    assert shuffled.tobytes() == together[order].tobytes()


def test_long_texts_are_exact_too(engine: Engine, artifact: Artifact) -> None:
    longest = artifact.manifest.max_tokens
    batch = np.arange(3 * longest, dtype=np.int64).reshape(3, longest) + 1000
    together = engine.run(batch)
    assert all(
        engine.run(batch[row : row + 1]).tobytes() == together[row].tobytes() for row in range(3)
    )


@pytest.mark.skipif(int8_products_saturate(), reason="this CPU takes the exact path anyway")
def test_the_path_for_cpus_without_vnni_gives_the_same_bits(
    engine: Engine, artifact: Artifact
) -> None:
    exact = Engine(artifact, exact_products=True)
    batch = np.random.default_rng(0).integers(1000, 30_000, (16, 9))
    assert exact.run(batch).tobytes() == engine.run(batch).tobytes()


@pytest.mark.skipif(not shutil.which("qemu-x86_64"), reason="needs Debian's qemu-user")
def test_a_cpu_without_vnni_is_recognized_and_gives_the_same_bits(
    engine: Engine, tmp_path: Path
) -> None:
    batch = np.random.default_rng(0).integers(1000, 30_000, (3, 7))
    np.save(tmp_path / "batch.npy", batch)
    program = (
        "import numpy as np, worker.artifact as a, worker.engine as e;"
        "engine = e.Engine(a.load_artifact(a.BUILT_IN_MODEL));"
        "assert engine.exact_products;"
        "np.save('logits.npy', engine.run(np.load('batch.npy')))"
    )
    command = ["qemu-x86_64", "-cpu", "Haswell", sys.executable, "-c", program]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert np.load(tmp_path / "logits.npy").tobytes() == engine.run(batch).tobytes()


def test_the_engine_runs_on_one_thread(engine: Engine) -> None:
    options = engine._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)


def test_a_token_id_beyond_the_vocabulary_is_an_engine_error(engine: Engine) -> None:
    with pytest.raises(EngineError, match="1 texts of 1 tokens"):
        engine.run(np.array([[10**7]], dtype=np.int64))


def test_scores_that_are_not_finite_are_an_engine_error(poisoned_model: Path) -> None:
    artifact = load_artifact(poisoned_model)
    engine = Engine(artifact)
    good, bad = (tokens.ids for tokens in TextTokenizer(artifact).encode(["horse", POISON]))
    engine.run(np.array([good], dtype=np.int64))
    with pytest.raises(EngineError, match="not finite"):
        engine.run(np.array([bad], dtype=np.int64))


def test_a_graph_that_onnxruntime_cannot_load_is_an_artifact_error(model_copy: Path) -> None:
    (model_copy / "model.onnx").write_bytes(b"no graph")
    sign(model_copy, "model.onnx")
    with pytest.raises(ArtifactError, match="cannot load"):
        Engine(load_artifact(model_copy))


def test_a_manifest_with_more_labels_than_the_graph_is_an_artifact_error(model_copy: Path) -> None:
    path = model_copy / MANIFEST_FILE
    manifest = json.loads(path.read_bytes())
    manifest["labels"].append("boredom")
    manifest["thresholds"]["boredom"] = 0.5
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ArtifactError, match="does not give 8 logits"):
        Engine(load_artifact(model_copy))
