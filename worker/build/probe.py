"""A model of one int8 product, which shows whether such products clip on this CPU.

`python -m worker.build.probe` writes it; a test holds the file to this code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from worker.build.graph import serialize
from worker.inference.onnxruntime_engine import PROBE_FILE, PROBE_SHAPE

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


if __name__ == "__main__":
    PROBE_FILE.write_bytes(saturation_probe())
