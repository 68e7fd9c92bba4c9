"""The ONNX graph of a DistilBERT classifier in int8, written from its weights.

There is no exporter and no pattern matching: each node stands where this file puts it.

Every matrix product of the encoder multiplies activations that are quantized by row with int8 weights that
have a scale a column. A row's scale depends on that row alone, so the answer for a text does not depend on
the texts that it shares a batch with. The tokens of a batch stand one after another without padding, and all
go through a product at once. Attention works within a text, on all texts of one length together. In the last layer only the first token, which the head reads, goes on after
attention.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from worker.inference.artifact import GRAPH_FILE, WEIGHTS_FILE
from worker.inference.native_engine import GRAPH_NAME, LAYER_NORM_EPSILON
from worker.inference.onnxruntime_engine import (
    INPUTS,
    int8_products_saturate,
    open_session,
    packed,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Weights: TypeAlias = Mapping[str, NDArray[np.float32]]

_OPSET: Final = 23
_IR_VERSION: Final = 11
_EXTERNAL_FROM_BYTES: Final = 1024
_ALIGNMENT: Final = 64
# GELU's minimum is -0.16997, at x = -0.7518 (Hendrycks and Gimpel, 2016).
_GELU_LOWEST: Final = 0.17
_INT8_MAX: Final = 127
_ZERO_POINT: Final = 128


def write_graph(
    folder: Path,
    weights: Weights,
    *,
    heads: int,
    cut: bool = True,
    normalized: Sequence[float] | None = None,
) -> None:
    """Write `model.onnx` and its `weights.bin` for a checkpoint's weights.

    The graph takes what `worker.inference.onnxruntime_engine.packed` makes of texts, and gives `logits`, float32
    [texts, labels]. `cut=False` carries all tokens through the last layer: same logits, slower.
    `normalized` has the largest size of the numbers that leave each LayerNormalization, as
    `largest_normalized` finds them; with it their scales are fixed, not by row, which is faster.
    """
    layers = sum(name.endswith("attention.q_lin.weight") for name in weights)
    graph = _Graph(weights, heads, normalized)
    texts = _Texts(graph)
    rows = _Rows(graph.add("Shape", "input_ids"), graph)
    hidden = _embeddings(graph)
    for index in range(layers):
        layer = f"distilbert.transformer.layer.{index}."
        if index == layers - 1:
            # With a fixed scale NaN and infinity become ordinary numbers. By row they spread over all
            # tokens of their text here, so that its logits are not finite either.
            graph.fixed.pop(hidden, None)
        attended = _attention(layer, hidden, rows, texts)
        if cut and index == layers - 1:
            attended, hidden = (texts.first_tokens(value) for value in (attended, hidden))
            rows = _Rows(graph.add("Shape", hidden, end=1), graph)
        hidden = _feed_forward(graph, layer, attended, hidden, rows)
    if not cut:
        hidden = texts.first_tokens(hidden)
    _head(graph, hidden)
    graph.save(folder)


def largest_normalized(folder: Path, batches: Iterable[Sequence[Sequence[int]]]) -> list[float]:
    """Return the largest size of the numbers that leave each LayerNormalization of a graph.

    `batches` are token ids, text by text; the graph in the folder has no fixed scales.
    """
    model = onnx.load(folder / GRAPH_FILE, load_external_data=False)
    names = [node.output[0] for node in model.graph.node if node.op_type == "LayerNormalization"]
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )
    weights = (folder / WEIGHTS_FILE).read_bytes()
    session = open_session(serialize(model.graph), weights, exact_products=int8_products_saturate())
    largest = np.zeros(len(names), dtype=np.float32)
    for batch in batches:
        values = session.run(names, packed(batch))
        largest = np.maximum(largest, [np.abs(value).max() for value in values])
    return [float(value) for value in largest]


def serialize(graph: onnx.GraphProto) -> bytes:
    """Return a graph as a model; the same graph gives the same bytes."""
    imports = [helper.make_opsetid("", _OPSET), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=_IR_VERSION)
    return bytes(model.SerializeToString(deterministic=True))


def quantize_columns(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize a matrix [in, out] symmetrically: int8 [in, out], and float32 scales [out]."""
    scales = np.abs(weight).max(axis=0) / np.float32(_INT8_MAX)
    scales = np.where(scales > 0, scales, 1).astype(np.float32)
    # A scale too small for full precision can round a quotient to beyond the range.
    quotients = np.clip(np.rint(weight / scales), -_INT8_MAX, _INT8_MAX)
    return quotients.astype(np.int8), scales


def fold_biases(weights: Weights) -> dict[str, NDArray[np.float32]]:
    """Move biases to where they cost nothing; the function computed stays the same.

    Attention weights sum to one, so V's bias passes attention unchanged and joins the output
    projection's. The second feed-forward bias joins that of the normalization before, whose
    output is both its residual and, corrected for it, the first feed-forward's input. K's bias
    shifts all scores of a query alike, which softmax cancels: it is not used at all.
    """
    folded = {name: weight.astype(np.float64) for name, weight in weights.items()}
    for name in weights:
        if not name.endswith(".attention.out_lin.bias"):
            continue
        layer = name.removesuffix("attention.out_lin.bias")
        value_bias = folded[layer + "attention.v_lin.bias"]
        folded[name] += folded[layer + "attention.out_lin.weight"] @ value_bias
        second = folded[layer + "ffn.lin2.bias"]
        folded[layer + "sa_layer_norm.bias"] += second
        folded[layer + "ffn.lin1.bias"] -= folded[layer + "ffn.lin1.weight"] @ second
    return {name: weight.astype(np.float32) for name, weight in folded.items()}


class _Graph:
    """Nodes and constants in the order they are added; every value has a name of its own."""

    def __init__(self, weights: Weights, heads: int, normalized: Sequence[float] | None) -> None:
        self._weights = fold_biases(weights)
        self._nodes: list[onnx.NodeProto] = []
        self._numbers = count()
        self._constants: dict[str, NDArray[Any]] = {}
        self._normalized = None if normalized is None else iter(normalized)
        # The fixed scales of those values that have one.
        self.fixed: dict[str, str] = {}
        self.heads = heads
        self.dim = weights["distilbert.embeddings.LayerNorm.weight"].size

    def add(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:  # noqa: ANN401 - what ONNX takes
        output = self.name(op)
        node = helper.make_node(op, inputs, [output], output, domain=domain, **attributes)
        self._nodes.append(node)
        return output

    def name(self, what: str) -> str:
        """Return a name that no other value has."""
        return f"{what}_{next(self._numbers)}"

    @contextmanager
    def apart(self) -> Iterator[list[onnx.NodeProto]]:
        """Add nodes to a list of their own, for a graph within this one."""
        outer, self._nodes = self._nodes, []
        try:
            yield self._nodes
        finally:
            self._nodes = outer

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self._constants[name] = np.asarray(value, order="C")
        return name

    def number(self, name: str, value: float) -> str:
        return self.constant(name, np.array(value, dtype=np.float32))

    def integers(self, name: str, *values: int) -> str:
        return self.constant(name, np.array(values, dtype=np.int64))

    def weight(self, name: str) -> NDArray[np.float32]:
        return self._weights[name]

    def vector(self, name: str) -> str:
        return self.constant(name, self.weight(name))

    def normalize(self, value: str, name: str) -> str:
        scale, bias = self.vector(f"{name}.weight"), self.vector(f"{name}.bias")
        output = self.add("LayerNormalization", value, scale, bias, epsilon=LAYER_NORM_EPSILON)
        if self._normalized is not None:
            largest = next(self._normalized)
            self.fixed[output] = self.number(f"{name}.fixed", largest / _INT8_MAX)
        return output

    def save(self, folder: Path) -> None:
        labels = self.weight("classifier.bias").size
        self._nodes[-1].output[0] = "logits"
        with (folder / WEIGHTS_FILE).open("wb") as file:
            tensors = [_tensor(name, value, file) for name, value in self._constants.items()]
        graph = helper.make_graph(
            self._nodes,
            GRAPH_NAME,
            [
                helper.make_tensor_value_info(name, TensorProto.INT64, shape)
                for name, shape in INPUTS.items()
            ],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["texts", labels])],
            tensors,
        )
        (folder / GRAPH_FILE).write_bytes(serialize(graph))


class _Quantized(NamedTuple):
    """A value as u8; its numbers are to be multiplied by `scale` and, if any, by row scales."""

    value: str
    scale: str
    row_scales: str | None


class _Rows:
    """Activations of some number of rows: their quantization and their products."""

    def __init__(self, count: str, graph: _Graph) -> None:
        self._graph = graph
        zero_point = numpy_helper.from_array(np.array([_ZERO_POINT], dtype=np.uint8))
        self._zero_points = graph.add("ConstantOfShape", count, value=zero_point)

    def quantize(self, value: str, *, gelu: bool = False) -> _Quantized:
        """Quantize float [rows, columns] to u8, by its fixed scale or by row."""
        graph = self._graph
        if value in graph.fixed:
            scale, zero = graph.fixed[value], self._zero_point()
            return _Quantized(graph.add("QuantizeLinear", value, scale, zero), scale, None)
        axis = graph.integers("one", 1)
        largest = graph.add("ReduceMax", value if gelu else graph.add("Abs", value), axis)
        scales = graph.add("Mul", largest, graph.number("1/127", 1 / _INT8_MAX))
        if gelu:
            lowest = graph.number("gelu_scale", _GELU_LOWEST / _ZERO_POINT)
            scales = graph.add("Max", scales, lowest)
        flat = graph.add("Reshape", scales, graph.integers("all", -1))
        quantized = graph.add("QuantizeLinear", value, flat, self._zero_points, axis=0)
        return _Quantized(quantized, graph.number("1", 1), scales)

    def product(self, quantized: _Quantized, name: str, *, bias: bool = False) -> str:
        """Multiply quantized rows with the weight of that name, and add its bias if asked to."""
        graph = self._graph
        columns, column_scales = quantize_columns(graph.weight(f"{name}.weight").T)
        inputs = [
            quantized.value,
            graph.constant(f"{name}.weight", columns),
            quantized.scale,
            graph.constant(f"{name}.scale", column_scales),
            self._zero_point(),
        ]
        if bias and quantized.row_scales is None:
            # Weights are symmetric, so they have no zero point.
            inputs += ["", graph.vector(f"{name}.bias")]
        product = graph.add("MatMulIntegerToFloat", *inputs, domain="com.microsoft")
        if quantized.row_scales is None:
            return product
        product = graph.add("Mul", product, quantized.row_scales)
        return graph.add("Add", product, graph.vector(f"{name}.bias")) if bias else product

    def _zero_point(self) -> str:
        return self._graph.constant("zero_point", np.array(_ZERO_POINT, dtype=np.uint8))


class _Texts:
    """Where the texts of a batch begin and end, and attention within each."""

    def __init__(self, graph: _Graph) -> None:
        self._graph = graph
        axis = graph.integers("one", 1)
        rows = graph.add("ReduceProd", "groups", axis)
        self._ends = graph.add("CumSum", rows, graph.integers("zero", 0))
        self._starts = graph.add("Sub", self._ends, rows)
        # The shape is texts, tokens, and whatever that leaves.
        widths = graph.integers("one_column", 0, 0, 0, 1)
        self._shapes = graph.add("Pad", "groups", widths, graph.integers("rest", -1))
        self._count = graph.add("Shape", "groups", end=1)
        self._alone = graph.add("Equal", self._count, axis)
        self._first = graph.add("Equal", "position_ids", "zero")
        graph.integers("all", -1)
        graph.integers("by_row", -1, graph.dim)

    def first_tokens(self, value: str) -> str:
        """Keep each text's first token: [rows, dim] to [texts, dim]."""
        return self._graph.add("Compress", value, self._first, axis=0)

    def attend(self, parts: Sequence[str]) -> str:
        """Attend over the tokens of each text; query, key and value [rows, dim] to [rows, dim]."""
        graph = self._graph
        with graph.apart() as nodes:
            whole = self._attend(parts, graph.add("Reshape", self._shapes, "all"))
        at_once = helper.make_graph(nodes, f"at_once_{whole}", [], [_floats(whole)])
        with graph.apart() as nodes:
            together = graph.add("ConcatFromSequence", self._group_by_group(parts), axis=0)
        by_group = helper.make_graph(nodes, f"by_group_{together}", [], [_floats(together)])
        # Most batches have texts of one length, and of these nothing has to be copied.
        return graph.add("If", self._alone, then_branch=at_once, else_branch=by_group)

    def _group_by_group(self, parts: Sequence[str]) -> str:
        graph = self._graph
        index, going, before = (graph.name(each) for each in ("group", "going", "before"))
        with graph.apart() as nodes:
            start, end, shape = (
                graph.add("Gather", each, index, axis=0)
                for each in (self._starts, self._ends, self._shapes)
            )
            attended = self._attend([graph.add("Slice", part, start, end) for part in parts], shape)
            after = graph.add("SequenceInsert", before, attended)
            going_on = graph.add("Identity", going)
        body = helper.make_graph(
            nodes,
            f"group_{after}",
            [
                helper.make_tensor_value_info(index, TensorProto.INT64, []),
                helper.make_tensor_value_info(going, TensorProto.BOOL, []),
                helper.make_tensor_sequence_value_info(before, TensorProto.FLOAT, None),
            ],
            [
                helper.make_tensor_value_info(going_on, TensorProto.BOOL, []),
                helper.make_tensor_sequence_value_info(after, TensorProto.FLOAT, None),
            ],
        )
        empty = graph.add("SequenceEmpty", dtype=TensorProto.FLOAT)
        return graph.add("Loop", self._count, "", empty, body=body)

    def _attend(self, parts: Sequence[str], shape: str) -> str:
        """Attend within texts of one length, whose rows become that shape."""
        graph = self._graph
        texts = [graph.add("Reshape", part, shape) for part in parts]
        attended = graph.add("Attention", *texts, q_num_heads=graph.heads, kv_num_heads=graph.heads)
        return graph.add("Reshape", attended, "by_row")


def _floats(value: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(value, TensorProto.FLOAT, None)


def _embeddings(graph: _Graph) -> str:
    """Look tokens and positions up, and normalize; returns [rows, dim]."""
    table = graph.weight("distilbert.embeddings.word_embeddings.weight")
    words, scales = quantize_columns(table.T)
    word = graph.add("Gather", graph.constant("words", words.T), "input_ids")
    scale = graph.add("Gather", graph.constant("word_scales", scales[:, None]), "input_ids")
    word = graph.add("Mul", graph.add("Cast", word, to=TensorProto.FLOAT), scale)
    positions = graph.vector("distilbert.embeddings.position_embeddings.weight")
    position = graph.add("Gather", positions, "position_ids")
    hidden = graph.add("Add", word, position)
    return graph.normalize(hidden, "distilbert.embeddings.LayerNorm")


def _attention(layer: str, hidden: str, rows: _Rows, texts: _Texts) -> str:
    """Attend over the tokens of each text; [rows, dim] to [rows, dim]."""
    quantized = rows.quantize(hidden)
    query = rows.product(quantized, f"{layer}attention.q_lin", bias=True)
    key = rows.product(quantized, f"{layer}attention.k_lin")
    value = rows.product(quantized, f"{layer}attention.v_lin")
    return texts.attend([query, key, value])


def _feed_forward(graph: _Graph, layer: str, attended: str, residual: str, rows: _Rows) -> str:
    """Finish a layer after attention: output projection, then the two feed-forward products."""
    projected = rows.product(rows.quantize(attended), f"{layer}attention.out_lin", bias=True)
    hidden = graph.normalize(graph.add("Add", projected, residual), f"{layer}sa_layer_norm")
    inner = graph.add("Gelu", rows.product(rows.quantize(hidden), f"{layer}ffn.lin1", bias=True))
    outer = rows.product(rows.quantize(inner, gelu=True), f"{layer}ffn.lin2")
    return graph.normalize(graph.add("Add", outer, hidden), f"{layer}output_layer_norm")


def _head(graph: _Graph, hidden: str) -> None:
    """Classify first tokens, [batch, dim], in fp32, since it is little work and nearest to the decision."""
    for name in ("pre_classifier", "classifier"):
        weight = graph.constant(f"{name}.weight", graph.weight(f"{name}.weight").T)
        product = graph.add("MatMul", hidden, weight)
        hidden = graph.add("Add", product, graph.vector(f"{name}.bias"))
        if name == "pre_classifier":
            hidden = graph.add("Relu", hidden)


def _tensor(name: str, value: NDArray[Any], file: Any) -> onnx.TensorProto:  # noqa: ANN401 - a binary file
    """Make a constant. A small one stands in the graph, a large one in the file of weights."""
    tensor = numpy_helper.from_array(value, name)
    if value.nbytes >= _EXTERNAL_FROM_BYTES:
        file.write(b"\0" * (-file.tell() % _ALIGNMENT))
        set_external_data(tensor, WEIGHTS_FILE, offset=file.tell(), length=value.nbytes)
        file.write(tensor.raw_data)
        tensor.ClearField("raw_data")
    return tensor
