"""The native engine gives the same bits with every backend, and takes nothing that it cannot run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import NATIVE, sign
from tests.inference.logits import LOGITS
from tests.inference.test_engine import BATCHES, random_batch
from worker.errors import ArtifactError, ConfigurationError, EngineError
from worker.inference import native_engine
from worker.inference.artifact import BUILT_IN_MODEL, GRAPH_FILE, MANIFEST_FILE
from worker.inference.engine import load_model, open_engine
from worker.inference.native_engine import (
    COMPUTATION,
    NativeEngine,
    available_backends,
    backends_of,
    load_library,
)
from worker.inference.tokens import TextTokenizer

if TYPE_CHECKING:
    from worker.inference.artifact import Artifact

pytestmark = NATIVE

ROOT = Path(__file__).parents[2]
# Every backend, with what its instructions compute written out: `make build/native/libemulated.so`.
EMULATED = ROOT / "build" / "native" / "libemulated.so"
WITH_EMULATED = pytest.mark.skipif(
    not EMULATED.exists() and not os.environ.get("CI"), reason=f"needs {EMULATED.name}"
)
BACKENDS = ["amx", "avx512vnni", "avxvnni", "avx2", "neon"]
LIMIT = 256
# Of the logits of a model of random numbers, by `native/fuzz.cpp`: whatever compiles it, for whatever CPU.
DIGEST = "75d2cc952980fade"


@pytest.fixture(scope="module")
def engine(artifact: Artifact) -> NativeEngine:
    return NativeEngine(artifact)


@pytest.fixture(scope="module")
def emulated(artifact: Artifact) -> dict[str, NativeEngine]:
    return {name: NativeEngine(artifact, name, EMULATED) for name in BACKENDS}


def test_scores_are_those_of_every_other_machine(artifact: Artifact, engine: NativeEngine) -> None:
    golden = json.loads(LOGITS.read_text("utf-8"))
    assert golden["computation"] == COMPUTATION
    ids = [tokens.ids for tokens in TextTokenizer(artifact).encode(list(golden["logits"]))]
    found = [[value.hex() for value in row] for row in engine.run(ids).tolist()]
    assert found == list(golden["logits"].values())


def test_each_backend_of_this_machine_gives_the_same_bits(
    artifact: Artifact, engine: NativeEngine
) -> None:
    batch = [*random_batch(40, 7), *random_batch(3, LIMIT), *random_batch(30, 3)]
    expected = engine.run(batch).tobytes()
    for backend in available_backends():
        assert NativeEngine(artifact, backend).run(batch).tobytes() == expected


@WITH_EMULATED
@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=10)
@given(batch=BATCHES)
def test_each_backend_gives_the_same_bits(
    engine: NativeEngine,
    emulated: dict[str, NativeEngine],
    backend: str,
    batch: list[list[int]],
) -> None:
    assert emulated[backend].run(batch).tobytes() == engine.run(batch).tobytes()


@WITH_EMULATED
@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_each_backend_gives_the_same_bits_for_any_number_of_rows(
    engine: NativeEngine, emulated: dict[str, NativeEngine], backend: str
) -> None:
    for tokens in [*range(1, 40), 63, 64, 65, LIMIT]:
        batch = random_batch(2, tokens)
        assert emulated[backend].run(batch).tobytes() == engine.run(batch).tobytes()


@WITH_EMULATED
def test_the_emulated_library_has_every_backend() -> None:
    assert backends_of(load_library(EMULATED)) == BACKENDS


def test_the_emulated_library_is_not_what_runs(engine: NativeEngine) -> None:
    assert set(backends_of(load_library(native_engine.LIBRARY))) >= {engine.backend}
    assert backends_of(load_library(native_engine.LIBRARY)) != BACKENDS


@given(batch=st.lists(st.lists(st.integers(-(2**40), 2**40), max_size=600), max_size=5))
def test_ids_and_lengths_that_the_model_does_not_have_are_an_engine_error(
    engine: NativeEngine, batch: list[list[int]]
) -> None:
    good = all(0 < len(ids) <= 512 and all(0 <= id_ < 30_522 for id_ in ids) for ids in batch)
    if good:
        assert engine.run(batch).shape == (len(batch), 7)
    else:
        with pytest.raises(EngineError, match=f"a batch of {len(batch)} texts"):
            engine.run(batch)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++, for its sanitizers")
def test_sanitizers_find_nothing() -> None:
    command = ["make", "--silent", "fuzz-native", "NATIVE_SECONDS=10", "NATIVE_SEED=1"]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert output.endswith(", nothing found\n")
    command = [str(ROOT / "build" / "native" / "fuzz"), "0", "1"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert output == f"1 models, digest {DIGEST}, nothing found\n"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("qemu-aarch64"), reason="needs Debian's qemu-user")
def test_arm64_gives_the_same_bits(tmp_path: Path) -> None:
    program = str(tmp_path / "fuzz")
    sources = [str(ROOT / "native" / f"{name}.cpp") for name in ("encoder", "neon", "fuzz")]
    command = [sys.executable, "-m", "ziglang", "c++", "-std=c++20", "-O2", "-static"]
    command += ["-ffp-contract=off", "-fno-math-errno", "-Wno-psabi", "-mcpu=generic+dotprod"]
    command += ["-target", "aarch64-linux-musl", *sources, "-o", program]
    subprocess.run(command, check=True)
    command = ["qemu-aarch64", "-cpu", "max", program, "0", "1"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert output == f"1 models, digest {DIGEST}, nothing found\n"


def test_more_tokens_than_it_runs_at_once_are_run_one_part_after_another(
    engine: NativeEngine,
) -> None:
    batch = [*random_batch(300, 6), *random_batch(7, LIMIT)]
    alone = np.concatenate([engine.run([ids]) for ids in batch])
    assert engine.run(batch).tobytes() == alone.tobytes()


def test_without_its_library_onnxruntime_takes_its_place(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(native_engine, "LIBRARY", tmp_path / "none.so")
    other = load_model(BUILT_IN_MODEL)
    assert open_engine(other).description.startswith("onnxruntime, ")
    assert other.digest != artifact.digest
    with pytest.raises(ConfigurationError, match=r"none\.so is not there"):
        load_model(BUILT_IN_MODEL, kind="native")
    with pytest.raises(EngineError, match=r"none\.so is not there"):
        NativeEngine(other, "avx2", tmp_path / "none.so")


def test_a_file_that_is_no_library_is_not_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "text.so").write_text("no library")
    monkeypatch.setattr(native_engine, "LIBRARY", tmp_path / "text.so")
    assert open_engine(load_model(BUILT_IN_MODEL)).description.startswith("onnxruntime, ")


def test_a_library_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_engine, "_VERSION", 99)
    load_library.cache_clear()
    with pytest.raises(ConfigurationError, match="version 1, not 99: build it anew"):
        load_model(BUILT_IN_MODEL, kind="native")


def test_on_a_cpu_without_its_instructions_onnxruntime_takes_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native_engine, "cpu_flags", lambda: frozenset({"sse2"}))
    with pytest.raises(ConfigurationError, match="nothing for this CPU"):
        load_model(BUILT_IN_MODEL, kind="native")


def test_a_backend_can_be_asked_for(artifact: Artifact) -> None:
    backend = available_backends()[-1]
    assert open_engine(artifact, backend).description == f"native, {backend}"
    with pytest.raises(ConfigurationError, match="cannot run the backend abacus"):
        open_engine(artifact, "abacus")


def test_a_graph_of_another_name_is_left_to_onnxruntime(model_copy: Path) -> None:
    path = model_copy / GRAPH_FILE
    content = path.read_bytes()
    assert content.count(b"distilbert-int8") == 1
    path.write_bytes(content.replace(b"distilbert-int8", b"distilbert-int9"))
    sign(model_copy, GRAPH_FILE)
    assert load_model(model_copy).computation == ""
    with pytest.raises(ConfigurationError, match="does not know what the graph"):
        load_model(model_copy, kind="native")


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x3a\x05"])
def test_a_file_that_is_no_graph_is_left_to_onnxruntime(model_copy: Path, content: bytes) -> None:
    (model_copy / GRAPH_FILE).write_bytes(content)
    sign(model_copy, GRAPH_FILE)
    artifact = load_model(model_copy)
    with pytest.raises(ArtifactError, match="cannot load"):
        open_engine(artifact)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("heads", 17, "cannot run models of this size"),
        ("dim", 392, "cannot run models of this size"),
        ("inner", 1520, "do not have the sizes"),
        ("dim", 192, "do not have the sizes"),
        ("layers", 5, None),
        ("layers", 7, "does not know what the graph"),
    ],
)
def test_a_manifest_that_lies_about_the_shape_is_told_of(
    model_copy: Path, key: str, value: int, problem: str | None
) -> None:
    path = model_copy / MANIFEST_FILE
    manifest = json.loads(path.read_bytes())
    manifest["shape"][key] = value
    path.write_text(json.dumps(manifest), encoding="utf-8")

    def run() -> None:
        open_engine(load_model(model_copy, kind="native")).run([[101, 102]])

    if problem is None:
        run()
    else:
        with pytest.raises((ArtifactError, ConfigurationError), match=problem):
            run()
