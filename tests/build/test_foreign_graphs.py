"""Graphs that others made load no bytes but those of `weights.bin`, and give logits or an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from worker.inference.onnxruntime_engine import open_session

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def external(name: str, location: str, numbers: int, kind: int) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=kind, dims=[numbers])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def with_a_subgraph(location: str) -> onnx.GraphProto:
    floats = onnx.TensorProto.FLOAT
    inner = [
        onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", [f"v{number}"], [f"w{number}"])],
            f"branch{number}",
            [],
            [onnx.helper.make_tensor_value_info(f"w{number}", floats, [4])],
            [external(f"v{number}", location, 4, floats)],
        )
        for number in range(2)
    ]
    condition = onnx.helper.make_tensor("condition", onnx.TensorProto.BOOL, [], [True])
    node = onnx.helper.make_node(
        "If", ["condition"], ["out"], then_branch=inner[0], else_branch=inner[1]
    )
    return graph_of([node], [condition])


def with_a_sparse_initializer(location: str) -> onnx.GraphProto:
    node = onnx.helper.make_node("Identity", ["values"], ["out"])
    graph = graph_of([node], [])
    graph.sparse_initializer.append(sparse(location))
    return graph


def with_a_sparse_constant(location: str) -> onnx.GraphProto:
    return graph_of(
        [onnx.helper.make_node("Constant", [], ["out"], sparse_value=sparse(location))], []
    )


def with_a_constant_of_shape(location: str) -> onnx.GraphProto:
    shape = onnx.helper.make_tensor("shape", onnx.TensorProto.INT64, [1], [4])
    value = external("value", location, 1, onnx.TensorProto.FLOAT)
    node = onnx.helper.make_node("ConstantOfShape", ["shape"], ["out"], value=value)
    return graph_of([node], [shape])


def sparse(location: str) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(
        values=external("values", location, 4, onnx.TensorProto.FLOAT),
        indices=onnx.helper.make_tensor("at", onnx.TensorProto.INT64, [4], [0, 1, 2, 3]),
        dims=[4],
    )


def graph_of(nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto]) -> onnx.GraphProto:
    out = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [4])
    return onnx.helper.make_graph(nodes, "graph", [], [out], initializers)


@pytest.mark.parametrize("location", ["others.bin", "../others.bin"])
@pytest.mark.parametrize(
    "make",
    [with_a_subgraph, with_a_sparse_initializer, with_a_sparse_constant, with_a_constant_of_shape],
)
def test_no_kind_of_constant_reads_another_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[str], onnx.GraphProto],
    location: str,
) -> None:
    (tmp_path / "inner").mkdir()
    for folder in (tmp_path, tmp_path / "inner"):
        np.ones(4, dtype=np.float32).tofile(folder / "others.bin")
    monkeypatch.chdir(tmp_path / "inner")
    model = onnx.helper.make_model(
        make(location), opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    with pytest.raises(Exception, match=r"others\.bin"):
        open_session(model.SerializeToString(), b"weights", exact_products=False).run(None, {})
