"""Reads the constants of an ONNX graph, and little else of it, without the package `onnx`.

That package is large, and running needs no more than this: the graph's name, its constants, and which
of them quantize something. The numbers of fields are those of onnx.proto (ONNX 1.21).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from worker.inference.artifact import WEIGHTS_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    # The number of a field, and what it holds: an integer, or bytes.
    Field: TypeAlias = tuple[int, int | memoryview]

_GRAPH_OF_MODEL: Final = 7
_NODE, _NAME_OF_GRAPH, _INITIALIZER = 1, 2, 5
_INPUT_OF_NODE, _OP_TYPE = 1, 4
_DIMS, _DATA_TYPE, _NAME_OF_TENSOR, _RAW_DATA, _EXTERNAL_DATA = 1, 2, 8, 9, 13
_KEY, _VALUE = 1, 2
_TYPES: Final[dict[int, type[np.generic[Any]]]] = {
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    7: np.int64,
}
# The wire types of Protocol Buffers, and how many bytes the fixed ones have.
_VARINT, _LENGTH = 0, 2
_FIXED: Final = {1: 8, 5: 4}
_MOST_DIGITS: Final = 10


@dataclass(frozen=True, slots=True)
class Constant:
    """Type and shape of a constant, and its bytes or where they are in the file of weights."""

    dtype: type[np.generic[Any]]
    shape: tuple[int, ...]
    place: bytes | tuple[int, int]

    def array(self, weights: bytes) -> NDArray[Any]:
        """Return the constant as a view of its bytes.

        Raises:
            ValueError: they are not in the file of weights, or not as many as the shape needs.

        """
        if isinstance(self.place, bytes):
            content = memoryview(self.place)
        else:
            offset, length = self.place
            if not 0 <= offset <= offset + length <= len(weights):
                raise ValueError("a constant that is not in the file of weights")
            content = memoryview(weights)[offset : offset + length]
        return np.frombuffer(content, self.dtype).reshape(self.shape)


@dataclass(slots=True)
class Graph:
    """A graph's name, its constants by name, and the names of those that scale a quantization."""

    name: str = ""
    constants: dict[str, Constant] = field(default_factory=dict)
    scales: set[str] = field(default_factory=set)


def read_graph(model: bytes) -> Graph:
    """Read the graph of a model.

    Raises:
        ValueError: the bytes are no such model.

    """
    graph = Graph()
    for number, value in _fields(memoryview(model)):
        if number == _GRAPH_OF_MODEL:
            _read_graph(_bytes(value), graph)
    return graph


def _read_graph(message: memoryview, graph: Graph) -> None:
    for number, value in _fields(message):
        if number == _NAME_OF_GRAPH:
            graph.name = _text(value)
        elif number == _INITIALIZER:
            name, constant = _constant(_bytes(value))
            graph.constants[name] = constant
        elif number == _NODE:
            node = list(_fields(_bytes(value)))
            inputs = [_text(each) for number, each in node if number == _INPUT_OF_NODE]
            kinds = [_text(each) for number, each in node if number == _OP_TYPE]
            if kinds == ["QuantizeLinear"]:
                graph.scales.update(inputs[1:2])


def _constant(tensor: memoryview) -> tuple[str, Constant]:
    name, kind, content = "", 0, b""
    shape: list[int] = []
    place: dict[str, str] = {}
    for number, value in _fields(tensor):
        if number == _DIMS:
            shape += [value] if isinstance(value, int) else _integers(value)
        elif number == _DATA_TYPE and isinstance(value, int):
            kind = value
        elif number == _NAME_OF_TENSOR:
            name = _text(value)
        elif number == _RAW_DATA:
            content = bytes(_bytes(value))
        elif number == _EXTERNAL_DATA:
            entry = {number: _text(each) for number, each in _fields(_bytes(value))}
            place[entry.get(_KEY, "")] = entry.get(_VALUE, "")
    if kind not in _TYPES:
        raise ValueError(f"a constant of a type that is not known: {kind}")
    if place:
        if place.get("location") != WEIGHTS_FILE:
            raise ValueError("a constant in another file")
        where = int(place.get("offset", "0")), int(place.get("length", "-1"))
        return name, Constant(_TYPES[kind], tuple(shape), where)
    return name, Constant(_TYPES[kind], tuple(shape), content)


def _fields(message: memoryview) -> Iterator[Field]:
    """Yield the fields of a message, in their order."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if wire == _LENGTH:
            length, at = _varint(message, at)
        elif wire in _FIXED:
            length = _FIXED[wire]
        else:
            raise ValueError("a field of a kind that is not known")
        if at + length > len(message):
            raise ValueError("a field that does not end")
        yield tag >> 3, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    number = 0
    for digit in range(_MOST_DIGITS):
        if at + digit >= len(message):
            break
        byte = message[at + digit]
        number |= (byte & 0x7F) << 7 * digit
        if byte < 0x80:  # noqa: PLR2004 - the highest bit says that more follow
            return number, at + digit + 1
    raise ValueError("a number that does not end")


def _integers(packed: memoryview) -> Iterator[int]:
    at = 0
    while at < len(packed):
        number, at = _varint(packed, at)
        yield number


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where there are bytes")  # noqa: TRY004 - what a reader of files raises
    return value


def _text(value: int | memoryview) -> str:
    return str(_bytes(value), "utf-8")
