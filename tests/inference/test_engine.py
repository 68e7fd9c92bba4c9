"""The engine is bit-exact: a text's logits are the same bytes in every batch."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import POISON, sign
from worker.errors import ArtifactError, EngineError
from worker.inference.artifact import MANIFEST_FILE, load_artifact
from worker.inference.engine import PROBE_FILE, Engine, int8_products_saturate
from worker.inference.tokens import TextTokenizer

if TYPE_CHECKING:
    from worker.inference.artifact import Artifact

STATM = Path("/proc/self/statm")
TOKENS = st.integers(min_value=1000, max_value=30_000)

TEXTS = st.lists(TOKENS, min_size=1, max_size=20)
# Texts of any lengths, and texts of one length.
BATCHES = st.lists(TEXTS, min_size=1, max_size=40) | st.integers(1, 20).flatmap(
    lambda tokens: st.lists(st.lists(TOKENS, min_size=tokens, max_size=tokens), min_size=1)
)


def random_batch(texts: int, tokens: int) -> list[list[int]]:
    ids = np.random.default_rng(0).integers(1000, 30_000, (texts, tokens))
    return [row.tolist() for row in ids]


@settings(max_examples=60)
@given(batch=BATCHES, data=st.data())
def test_logits_do_not_depend_on_the_batch_or_the_order(
    engine: Engine, batch: list[list[int]], data: st.DataObject
) -> None:
    together = engine.run(batch)
    alone = np.concatenate([engine.run([ids]) for ids in batch])
    order = data.draw(st.permutations(range(len(batch))))
    shuffled = engine.run([batch[each] for each in order])
    assert together.tobytes() == alone.tobytes()
    assert shuffled.tobytes() == together[order].tobytes()


def test_long_texts_are_exact_too(engine: Engine, artifact: Artifact) -> None:
    longest = artifact.manifest.max_tokens
    batch = [*random_batch(3, longest), *random_batch(2, 5)]
    together = engine.run(batch)
    assert all(
        engine.run([ids]).tobytes() == logits.tobytes()
        for ids, logits in zip(batch, together, strict=True)
    )


@pytest.mark.skipif(int8_products_saturate(), reason="this CPU takes the exact path anyway")
def test_the_path_for_cpus_without_vnni_gives_the_same_bits(
    engine: Engine, artifact: Artifact
) -> None:
    exact = Engine(artifact, exact_products=True)
    batch = [*random_batch(16, 9), *random_batch(3, 4)]
    assert exact.run(batch).tobytes() == engine.run(batch).tobytes()


@pytest.mark.skipif(not shutil.which("qemu-x86_64"), reason="needs Debian's qemu-user")
def test_a_cpu_without_vnni_is_recognized_and_gives_the_same_bits(
    engine: Engine, tmp_path: Path
) -> None:
    batch = [*random_batch(3, 7), *random_batch(1, 4)]
    program = (
        "import numpy as np, worker.inference.artifact as a, worker.inference.engine as e;"
        "engine = e.Engine(a.load_artifact(a.BUILT_IN_MODEL));"
        "assert engine.exact_products;"
        f"np.save('logits.npy', engine.run({batch}))"
    )
    command = ["qemu-x86_64", "-cpu", "Haswell", sys.executable, "-c", program]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert np.load(tmp_path / "logits.npy").tobytes() == engine.run(batch).tobytes()


def test_the_engine_runs_on_one_thread(engine: Engine) -> None:
    options = engine._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)


@pytest.mark.slow
@pytest.mark.skipif(not STATM.exists(), reason="needs Linux's /proc")
def test_memory_is_steady_after_warming_up(engine: Engine) -> None:
    rng = np.random.default_rng(1)
    lengths = [[*rng.integers(3, 40, 12), rng.integers(3, 257)] for _ in range(200)]
    batches = [
        [rng.integers(1000, 30_000, each).tolist() for each in sorted(some)] for some in lengths
    ]
    for batch in batches[:50]:
        engine.run(batch)
    before = resident()
    for batch in batches[50:]:
        engine.run(batch)
    # A batch that kept the activations of a dozen tokens each time would exceed this.
    assert resident() - before < 150 * 12 * 384 * 4


def resident() -> int:
    """Return this process's memory, in bytes."""
    return int(STATM.read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def test_a_token_id_beyond_the_vocabulary_is_an_engine_error(engine: Engine) -> None:
    with pytest.raises(EngineError, match="1 texts, 1 tokens in all"):
        engine.run([[10**7]])


def test_scores_that_are_not_finite_are_an_engine_error(poisoned_model: Path) -> None:
    artifact = load_artifact(poisoned_model)
    engine = Engine(artifact)
    good, bad = (tokens.ids for tokens in TextTokenizer(artifact).encode(["horse", POISON]))
    engine.run([good])
    with pytest.raises(EngineError, match="not finite"):
        engine.run([bad])


def test_a_graph_that_onnxruntime_cannot_load_is_an_artifact_error(model_copy: Path) -> None:
    (model_copy / "model.onnx").write_bytes(b"no graph")
    sign(model_copy, "model.onnx")
    with pytest.raises(ArtifactError, match="cannot load"):
        Engine(load_artifact(model_copy))


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
        Engine(load_artifact(model_copy))


def test_a_graph_of_another_version_is_an_artifact_error(model_copy: Path) -> None:
    (model_copy / "model.onnx").write_bytes(PROBE_FILE.read_bytes())
    sign(model_copy, "model.onnx")
    with pytest.raises(ArtifactError, match=r"not a graph of this version.*prepare the model anew"):
        Engine(load_artifact(model_copy))


def test_a_manifest_with_more_labels_than_the_graph_is_an_artifact_error(model_copy: Path) -> None:
    path = model_copy / MANIFEST_FILE
    manifest = json.loads(path.read_bytes())
    manifest["labels"].append("boredom")
    manifest["thresholds"]["boredom"] = 0.5
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ArtifactError, match="does not give 8 logits"):
        Engine(load_artifact(model_copy))
