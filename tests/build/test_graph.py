"""The int8 graph: near fp32, and the same bytes whatever stands beside a text."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tests.build.conftest import VOCABULARY, prepared
from worker.build.checkpoint import Checkpoint, predict_logits
from worker.build.digests import file_sha256
from worker.build.graph import (
    fold_biases,
    largest_normalized,
    quantize_columns,
    write_graph,
)
from worker.inference.artifact import GRAPH_FILE, WEIGHTS_FILE
from worker.inference.onnxruntime_engine import OnnxruntimeEngine, int8_products_saturate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from random import Random

    from numpy.typing import NDArray

    from tests.build.conftest import TinyCheckpoint
    from worker.inference.artifact import Artifact

    MakeFixed = Callable[..., Artifact]

POSITIONS = 64
# Closer to zero float32 is subnormal and divides with a loss; no weight of a model is as small.
SIZES = st.floats(2**-100, 2**20, width=32)
WEIGHTS = st.just(0.0) | SIZES | SIZES.map(lambda size: -size)
MATRICES = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=WEIGHTS)


def random_ids(texts: int, tokens: int, seed: int = 0) -> list[list[int]]:
    return random_groups([(texts, tokens)], seed)


def random_groups(groups: Sequence[tuple[int, int]], seed: int = 0) -> list[list[int]]:
    """Return texts of some lengths, so many of each."""
    rng = np.random.default_rng(seed)
    return [
        rng.integers(len(VOCABULARY), size=tokens).tolist()
        for texts, tokens in groups
        for _ in range(texts)
    ]


GROUPS = st.lists(st.tuples(st.integers(1, 8), st.integers(2, POSITIONS)), min_size=1, max_size=6)
BATCHES = st.builds(random_groups, GROUPS, st.integers(0))


def weights_of(checkpoint: Checkpoint) -> dict[str, NDArray[np.float32]]:
    return {name: value.numpy() for name, value in checkpoint.model.state_dict().items()}


def relative_error(value: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(value - exact) / np.linalg.norm(exact))


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: TinyCheckpoint) -> Checkpoint:
    return Checkpoint.load(tiny_checkpoint())


@pytest.fixture(scope="module")
def engine(tiny_artifact: Artifact) -> OnnxruntimeEngine:
    return OnnxruntimeEngine(tiny_artifact)


@pytest.fixture(scope="module")
def exact_engine(tiny_artifact: Artifact) -> OnnxruntimeEngine:
    return OnnxruntimeEngine(tiny_artifact, exact_products=True)


@pytest.fixture(scope="module")
def odd_engine(
    tiny_checkpoint: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> OnnxruntimeEngine:
    """Return an engine of sizes that fill no vector register evenly."""
    labels = [f"label-{number}" for number in range(27)]
    folder = tiny_checkpoint(labels=labels, dim=36, hidden_dim=53, n_layers=3)
    return OnnxruntimeEngine(prepared(folder, tmp_path_factory.mktemp("odd")))


@pytest.fixture(scope="module")
def uncut(
    checkpoint: Checkpoint, tiny_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    folder = tmp_path_factory.mktemp("uncut")
    write_graph(folder, weights_of(checkpoint), heads=checkpoint.model.config.n_heads, cut=False)
    return rewritten(tiny_artifact, folder)


def rewritten(artifact: Artifact, folder: Path) -> Artifact:
    """Return an artifact with the graph and the weights of another folder."""
    files = {**artifact.manifest.files}
    for name in (GRAPH_FILE, WEIGHTS_FILE):
        files[name] = file_sha256(folder / name)
    return replace(
        artifact, folder=folder, manifest=artifact.manifest.model_copy(update={"files": files})
    )


@pytest.fixture(scope="module")
def uncut_engine(uncut: Artifact) -> OnnxruntimeEngine:
    return OnnxruntimeEngine(uncut)


@pytest.fixture(scope="module")
def largest(tiny_artifact: Artifact) -> list[float]:
    """Return what leaves the normalizations for some batches."""
    return largest_normalized(tiny_artifact.folder, [random_ids(50, n) for n in (2, 7, 33)])


@pytest.fixture(scope="module")
def make_fixed(
    checkpoint: Checkpoint, tiny_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> MakeFixed:
    """Return what makes an artifact with fixed scales."""

    def make(normalized: Sequence[float], *, cut: bool = True) -> Artifact:
        folder = tmp_path_factory.mktemp("fixed")
        heads = checkpoint.model.config.n_heads
        write_graph(folder, weights_of(checkpoint), heads=heads, cut=cut, normalized=normalized)
        return rewritten(tiny_artifact, folder)

    return make


@pytest.fixture(scope="module")
def fixed_engine(make_fixed: MakeFixed, largest: list[float]) -> OnnxruntimeEngine:
    return OnnxruntimeEngine(make_fixed(largest))


@pytest.mark.parametrize("tokens", [2, 7, 33, POSITIONS])
def test_int8_logits_differ_from_fp32_logits_by_less_than_a_tenth(
    engine: OnnxruntimeEngine, checkpoint: Checkpoint, tokens: int
) -> None:
    ids = random_ids(50, tokens)
    fp32 = predict_logits(checkpoint.model, ids)
    assert 0 < relative_error(engine.run(ids), fp32) < 0.1


def test_folding_biases_leaves_the_function_the_same(tiny_checkpoint: TinyCheckpoint) -> None:
    checkpoint = Checkpoint.load(tiny_checkpoint(n_layers=3))
    ids = random_ids(20, 17)
    before = predict_logits(checkpoint.model, ids)
    unused = ("attention.k_lin.bias", "attention.v_lin.bias", "ffn.lin2.bias")
    folded = {
        name: np.zeros_like(weight) if name.endswith(unused) else weight
        for name, weight in fold_biases(weights_of(checkpoint)).items()
    }

    checkpoint.model.load_state_dict({n: torch.from_numpy(w) for n, w in folded.items()})

    assert relative_error(predict_logits(checkpoint.model, ids), before) < 1e-5


def test_biases_that_are_not_folded_would_be_missed(tiny_checkpoint: TinyCheckpoint) -> None:
    checkpoint = Checkpoint.load(tiny_checkpoint(n_layers=3))
    ids = random_ids(20, 17)
    before = predict_logits(checkpoint.model, ids)
    for name, weight in checkpoint.model.state_dict().items():
        if name.endswith(("attention.v_lin.bias", "ffn.lin2.bias")):
            weight.zero_()
    assert relative_error(predict_logits(checkpoint.model, ids), before) > 0.01


def test_folding_biases_leaves_the_weights_given_alone(checkpoint: Checkpoint) -> None:
    weights = weights_of(checkpoint)
    copies = {name: weight.copy() for name, weight in weights.items()}
    fold_biases(weights)
    for name, weight in weights.items():
        np.testing.assert_array_equal(weight, copies[name])


@given(MATRICES)
def test_a_quantized_weight_is_off_by_half_a_step_at_most(matrix: NDArray[np.float32]) -> None:
    quantized, scales = quantize_columns(matrix)
    error = np.abs(quantized * scales.astype(np.float64) - matrix)
    # A hair more than half: the division before rounding is in float32.
    assert (error <= 0.50001 * scales).all()


@given(MATRICES)
def test_the_largest_weight_of_a_column_becomes_127_or_minus_127(
    matrix: NDArray[np.float32],
) -> None:
    quantized, _ = quantize_columns(matrix)
    largest = np.abs(quantized.astype(np.int64)).max(axis=0)
    np.testing.assert_array_equal(largest, np.where(matrix.any(axis=0), 127, 0))


@given(MATRICES, st.data())
def test_a_column_is_quantized_by_itself(matrix: NDArray[np.float32], data: st.DataObject) -> None:
    column = data.draw(st.integers(0, matrix.shape[1] - 1))
    quantized, scales = quantize_columns(matrix)
    alone, scale = quantize_columns(matrix[:, [column]])
    np.testing.assert_array_equal(quantized[:, [column]], alone)
    assert scales[column] == scale


def test_a_column_of_zeros_has_scale_one() -> None:
    quantized, scales = quantize_columns(np.array([[0, 254], [0, -1]], dtype=np.float32))
    assert quantized.dtype == np.int8
    assert scales.dtype == np.float32
    assert quantized.tolist() == [[0, 127], [0, 0]]
    assert scales.tolist() == [1, 2]


@given(ids=BATCHES)
def test_logits_of_a_text_are_the_same_bytes_alone_and_in_any_batch(
    engine: OnnxruntimeEngine, ids: list[list[int]]
) -> None:
    for index, logits in enumerate(engine.run(ids)):
        assert logits.tobytes() == engine.run([ids[index]]).tobytes()


@given(ids=BATCHES)
def test_sizes_that_fill_no_vector_evenly_give_the_same_bytes_too(
    odd_engine: OnnxruntimeEngine, ids: list[list[int]]
) -> None:
    for index, logits in enumerate(odd_engine.run(ids)):
        assert logits.tobytes() == odd_engine.run([ids[index]]).tobytes()


@given(ids=BATCHES, random=st.randoms(use_true_random=False))
def test_the_order_of_a_batch_decides_nothing(
    engine: OnnxruntimeEngine, ids: list[list[int]], random: Random
) -> None:
    order = random.sample(range(len(ids)), len(ids))
    assert engine.run([ids[each] for each in order]).tobytes() == engine.run(ids)[order].tobytes()


@given(ids=BATCHES)
def test_carrying_all_tokens_through_the_last_layer_gives_the_same_bytes(
    engine: OnnxruntimeEngine, uncut_engine: OnnxruntimeEngine, ids: list[list[int]]
) -> None:
    assert uncut_engine.run(ids).tobytes() == engine.run(ids).tobytes()


@pytest.mark.parametrize("tokens", [2, 7, 33, POSITIONS])
def test_fixed_scales_stay_as_near_to_fp32(
    fixed_engine: OnnxruntimeEngine, checkpoint: Checkpoint, tokens: int
) -> None:
    ids = random_ids(50, tokens, seed=1)
    fp32 = predict_logits(checkpoint.model, ids)
    assert 0 < relative_error(fixed_engine.run(ids), fp32) < 0.1


@given(ids=BATCHES)
def test_fixed_scales_give_the_same_bytes_alone_and_in_any_batch(
    fixed_engine: OnnxruntimeEngine, ids: list[list[int]]
) -> None:
    for index, logits in enumerate(fixed_engine.run(ids)):
        assert logits.tobytes() == fixed_engine.run([ids[index]]).tobytes()


def test_fixed_scales_give_the_same_bytes_without_the_cut(
    fixed_engine: OnnxruntimeEngine, make_fixed: MakeFixed, largest: list[float]
) -> None:
    uncut = OnnxruntimeEngine(make_fixed(largest, cut=False))
    ids = random_ids(50, 9, seed=2)
    assert uncut.run(ids).tobytes() == fixed_engine.run(ids).tobytes()


def test_fixed_scales_alter_the_graph_and_not_its_weights(
    make_fixed: MakeFixed, largest: list[float], tiny_artifact: Artifact
) -> None:
    fixed, by_row = make_fixed(largest).manifest.files, tiny_artifact.manifest.files
    assert fixed[WEIGHTS_FILE] == by_row[WEIGHTS_FILE]
    assert fixed[GRAPH_FILE] != by_row[GRAPH_FILE]


def test_what_is_beyond_a_fixed_scale_is_cut_off_there(
    make_fixed: MakeFixed, largest: list[float], engine: OnnxruntimeEngine
) -> None:
    narrow = OnnxruntimeEngine(make_fixed([value / 4 for value in largest]))
    ids = random_ids(50, 9, seed=3)
    error = relative_error(narrow.run(ids), engine.run(ids))
    assert 0.1 < error < 10


def test_each_normalization_is_watched_and_the_folder_left_as_it_was(
    largest: list[float], checkpoint: Checkpoint, tiny_artifact: Artifact
) -> None:
    assert len(largest) == 1 + 2 * checkpoint.model.config.n_layers
    assert min(largest) > 0
    more = largest_normalized(tiny_artifact.folder, [random_ids(50, 2), random_ids(200, 11, 4)])
    less = largest_normalized(tiny_artifact.folder, [random_ids(50, 2)])
    assert all(a >= b for a, b in zip(more, less, strict=True))
    assert more != less
    assert not list(tiny_artifact.folder.glob("watched*"))


def test_cutting_the_last_layer_alters_the_graph_and_not_its_weights(
    tiny_artifact: Artifact, uncut: Artifact
) -> None:
    assert uncut.manifest.files[GRAPH_FILE] != tiny_artifact.manifest.files[GRAPH_FILE]
    assert uncut.manifest.files[WEIGHTS_FILE] == tiny_artifact.manifest.files[WEIGHTS_FILE]


@pytest.mark.skipif(
    int8_products_saturate(), reason="the quick int8 products of this CPU clip their sums"
)
@given(ids=BATCHES)
def test_exact_products_give_the_same_bytes(
    engine: OnnxruntimeEngine, exact_engine: OnnxruntimeEngine, ids: list[list[int]]
) -> None:
    assert exact_engine.run(ids).tobytes() == engine.run(ids).tobytes()


@pytest.fixture
def base_folder(tiny_checkpoint: TinyCheckpoint) -> Iterator[Path]:
    """Return a checkpoint of the size of distilbert-base: too big to be kept after the test."""
    folder = tiny_checkpoint(
        spread=0.03, dim=768, hidden_dim=3072, n_layers=6, n_heads=12, vocab_size=30522
    )
    yield folder
    shutil.rmtree(folder)


def test_a_model_as_big_as_distilbert_base_can_be_prepared_and_run(
    base_folder: Path, tmp_path: Path
) -> None:
    artifact = prepared(base_folder, tmp_path)
    engine = OnnxruntimeEngine(artifact)
    ids = random_ids(9, 13)

    logits = engine.run(ids)
    shutil.rmtree(artifact.folder)

    fp32 = predict_logits(Checkpoint.load(base_folder).model, ids)
    assert relative_error(logits, fp32) < 0.1
    for index, row in enumerate(logits):
        assert row.tobytes() == engine.run([ids[index]]).tobytes()
