"""Models of one int8 product: whether this CPU's clip, and how fast they are.

`python -m worker.build.probe` writes them; tests hold the files to this code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from worker.bench.peak import PEAK_FILE, PEAK_SHAPE
from worker.build.graph import serialize
from worker.inference.engine import PROBE_FILE, PROBE_SHAPE

if TYPE_CHECKING:
    from numpy.typing import NDArray


def saturation_probe() -> bytes:
    """Return a model that multiplies u8 rows with int8 127s, whose sums of two need 17 bits."""
    rows, columns = PROBE_SHAPE
    constants: dict[str, NDArray[Any]] = {
        "weight": np.full((rows, columns), 127, dtype=np.int8),
        "one": np.array(1, dtype=np.float32),
    }
    node = helper.make_node(
        "MatMulIntegerToFloat",
        ["activations", "weight", "one", "one"],
        ["product"],
        domain="com.microsoft",
    )
    graph = helper.make_graph(
        [node],
        "saturation-probe",
        [helper.make_tensor_value_info("activations", TensorProto.UINT8, ["batch", rows])],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, ["batch", columns])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return serialize(graph)


def peak_probe() -> bytes:
    """Return a model that multiplies u8 rows with weights that are all the same.

    onnxruntime makes the weights when it loads the model, and packs them as it does a model's own.
    """
    constants: dict[str, NDArray[Any]] = {
        "shape": np.array(PEAK_SHAPE, dtype=np.int64),
        "one": np.array(1, dtype=np.float32),
        "from": np.zeros(2, dtype=np.int64),
        "to": np.ones(2, dtype=np.int64),
    }
    weight = helper.make_tensor("value", TensorProto.INT8, [1], [1])
    product = ["activations", "weight", "one", "one"]
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["weight"], value=weight),
        helper.make_node("MatMulIntegerToFloat", product, ["product"], domain="com.microsoft"),
        helper.make_node("Slice", ["product", "from", "to"], ["kept"]),
    ]
    graph = helper.make_graph(
        nodes,
        "peak-probe",
        [helper.make_tensor_value_info("activations", TensorProto.UINT8, ["rows", PEAK_SHAPE[0]])],
        [helper.make_tensor_value_info("kept", TensorProto.FLOAT, [1, 1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return serialize(graph)


if __name__ == "__main__":
    PROBE_FILE.write_bytes(saturation_probe())
    PEAK_FILE.write_bytes(peak_probe())
