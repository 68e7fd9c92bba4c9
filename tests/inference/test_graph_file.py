"""The constants of a graph are read as the package `onnx` reads them, and no bytes can do harm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.inference.artifact import BUILT_IN_MODEL, GRAPH_FILE, WEIGHTS_FILE
from worker.inference.graph_file import Constant, read_graph

if TYPE_CHECKING:
    from collections.abc import Callable

GRAPH = (BUILT_IN_MODEL / GRAPH_FILE).read_bytes()


def test_constants_are_those_that_onnx_reads() -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(BUILT_IN_MODEL / GRAPH_FILE)
    expected = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
    }
    graph = read_graph(GRAPH)
    weights = (BUILT_IN_MODEL / WEIGHTS_FILE).read_bytes()
    assert graph.name == model.graph.name
    assert graph.constants.keys() == expected.keys()
    for name, constant in graph.constants.items():
        array = constant.array(weights)
        assert array.dtype == expected[name].dtype
        assert array.shape == expected[name].shape
        assert array.tobytes() == expected[name].tobytes()
    scales = {node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert graph.scales == scales


def refuses(read: Callable[[], object]) -> None:
    """Let something be read, or refused in the one way that callers know."""
    try:
        read()
    except ValueError as error:
        assert str(error)  # noqa: PT017 - either is right


@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    refuses(lambda: read_graph(content))


@given(at=st.integers(0, len(GRAPH) - 1), new=st.binary(min_size=1, max_size=3))
def test_a_damaged_graph_is_read_or_refused(at: int, new: bytes) -> None:
    refuses(lambda: read_graph(GRAPH[:at] + new + GRAPH[at + len(new) :]))
    refuses(lambda: read_graph(GRAPH[:at]))


@given(
    place=st.tuples(st.integers(-100, 200), st.integers(-100, 200)) | st.binary(max_size=20),
    shape=st.lists(st.integers(-2, 5), max_size=3),
)
def test_a_constant_is_within_its_file_or_refused(
    place: tuple[int, int] | bytes, shape: list[int]
) -> None:
    import numpy as np  # noqa: PLC0415 - for this alone

    refuses(lambda: Constant(np.int8, tuple(shape), place).array(bytes(100)))
