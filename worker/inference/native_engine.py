"""The engine of our own: the forward pass of `native/`, which gives the same bits on every CPU.

The library stands beside this file where the package was built with it. It takes no memory and no thread
of its own, and checks all that it gets.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from worker.errors import ArtifactError, ConfigurationError, EngineError
from worker.inference.artifact import GRAPH_FILE, WEIGHTS_FILE
from worker.inference.cpu import cpu_flags
from worker.inference.graph_file import read_graph

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from worker.inference.artifact import Artifact, Shape
    from worker.inference.graph_file import Graph

LIBRARY: Final = Path(__file__).with_name("libencoder.so")
# Changes with the bits of any score.
COMPUTATION: Final = "native 1"
# What the library computes is what a graph of this name does: another computation needs another name.
GRAPH_NAME: Final = "distilbert-int8"
LAYER_NORM_EPSILON: Final = 1e-12

_VERSION: Final = 1
_DONE, _NOT_FINITE = 0, 1
# What each backend needs of the CPU, as Linux names it; native/build.py lets its file use that.
_V3: Final = frozenset({"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"})
_V4: Final = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_NEEDS: Final = {
    "amx": _V4 | {"avx512_vnni", "amx_tile", "amx_int8"},
    "avx512vnni": _V4 | {"avx512_vnni"},
    "avxvnni": _V3 | {"avx_vnni"},
    "avx2": _V3,
    "neon": frozenset({"asimd", "asimddp"}),
}
# Linux gives a process the tiles of AMX when it asks for them (Documentation/arch/x86/xstate.rst).
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18
_POSITIONS: Final = "distilbert.embeddings.position_embeddings.weight"


class _Sizes(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int32)
        for name in ("layers", "dim", "inner", "heads", "labels", "words", "positions")
    ]


class _Tensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("bytes", ctypes.c_uint64)]


def available_backends() -> list[str]:
    """Return the backends that this machine can run, the fastest first; none without the library."""
    try:
        library = load_library(LIBRARY)
    except EngineError:
        return []
    flags = cpu_flags()
    found = [name for name in backends_of(library) if flags >= _NEEDS[name]]
    return [name for name in found if name != "amx" or _may_use_amx()]


def why_not_native(artifact: Artifact) -> str | None:
    """Return why this machine cannot run a model by this engine, or None if it can.

    Raises:
        ArtifactError: the model's graph is missing or altered.

    """
    try:
        library = load_library(LIBRARY)
    except EngineError as error:
        return str(error)
    backends = available_backends()
    if not backends:
        return f"it has nothing for this CPU, but {', '.join(backends_of(library))}"
    graph = _graph_of(artifact)
    if graph is None:
        return "it does not know what the graph of this model computes"
    if not _bytes_for(library, _sizes(graph, artifact), backends[0]):
        return "it cannot run models of this size"
    return None


class NativeEngine:
    """A loaded model; use it from one thread."""

    def __init__(
        self, artifact: Artifact, backend: str | None = None, library: Path = LIBRARY
    ) -> None:
        """Load the model of an artifact, for a backend or for the fastest that this machine can run.

        Raises:
            ArtifactError: the model is none that the library computes.
            ConfigurationError: the library has no such backend, or none for this machine.
            EngineError: the library is missing.

        """
        self._library = load_library(library)
        self.backend = backend or next(iter(available_backends()), "")
        if self.backend not in backends_of(self._library):
            raise ConfigurationError(f"the native engine has no backend {self.backend} here")
        self._labels = len(artifact.manifest.labels)
        graph = _graph_of(artifact)
        if graph is None:
            raise ArtifactError(f"the native engine does not know the graph in {artifact.folder}")
        size = _bytes_for(self._library, _sizes(graph, artifact), self.backend)
        if not size:
            raise ArtifactError(f"the model in {artifact.folder} has a size that cannot be run")
        # Zero, from the start of a page, and what is never used takes no room.
        pages = mmap.mmap(-1, size)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            pages.madvise(mmap.MADV_HUGEPAGE)
        self._pages = np.frombuffer(pages, np.uint8)
        self._memory = self._pages.ctypes.data
        self._load(artifact, graph)

    @property
    def identity(self) -> str:
        """Do as `Engine` says."""
        return COMPUTATION

    @property
    def description(self) -> str:
        """Do as `Engine` says."""
        return f"native, {self.backend}"

    def run(self, batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Do as `Engine` says."""
        logits = np.empty((len(batch), self._labels), dtype=np.float32)
        status = None
        try:
            lengths = np.fromiter(map(len, batch), np.int32, len(batch))
            ids = np.fromiter(chain.from_iterable(batch), np.int32)
        except OverflowError:
            pass
        else:
            status = self._library.encoder_run(
                *(self._memory, ids.ctypes.data, ids.size, lengths.ctypes.data, lengths.size),
                *(logits.ctypes.data, logits.size),
            )
        if status == _NOT_FINITE or (status == _DONE and not np.isfinite(logits).all()):
            raise EngineError("the model's scores are not finite")
        if status != _DONE:
            tokens = sum(len(ids) for ids in batch)
            raise EngineError(
                f"the native engine failed on a batch of {len(batch)} texts, {tokens} tokens in all"
            )
        return logits

    def _load(self, artifact: Artifact, graph: Graph) -> None:
        weights = artifact.read(WEIGHTS_FILE)
        shape = artifact.manifest.shape
        try:
            arrays = [
                np.ascontiguousarray(graph.constants[name].array(weights)) for name in _names(shape)
            ]
            scales = [
                float(graph.constants[name].array(weights)) if name in graph.scales else 0.0
                for name in _scale_names(shape)
            ]
        except (ValueError, TypeError):
            # The library finds none of them.
            arrays, scales = [], []
        fixed = np.array(scales, dtype=np.float32)
        tensors = (_Tensor * len(arrays))(*(_Tensor(a.ctypes.data, a.nbytes) for a in arrays))
        status = self._library.encoder_load(
            *(self._memory, self._pages.size, ctypes.byref(_sizes(graph, artifact))),
            *(self.backend.encode(), LAYER_NORM_EPSILON),
            *(fixed.ctypes.data, fixed.size, tensors, len(arrays)),
        )
        if status != _DONE:
            raise ArtifactError(
                f"the constants in {artifact.folder} do not have the sizes of its manifest"
            )


@lru_cache(maxsize=4)
def load_library(path: Path) -> ctypes.CDLL:
    """Load a library of the engine, once.

    Raises:
        EngineError: it is missing, or of another version.

    """
    try:
        library = ctypes.CDLL(str(path))
        version = library.encoder_version()
    except (OSError, AttributeError):
        raise EngineError(f"{path} is not there, or is no library of the engine") from None
    if version != _VERSION:
        raise EngineError(f"{path} has the version {version}, not {_VERSION}: build it anew")
    pointer, number = ctypes.c_void_p, ctypes.c_uint64
    library.encoder_backend.argtypes = [ctypes.c_uint32]
    library.encoder_backend.restype = ctypes.c_char_p
    library.encoder_bytes.argtypes = [pointer, ctypes.c_char_p]
    library.encoder_bytes.restype = number
    library.encoder_load.argtypes = [
        *(pointer, number, pointer, ctypes.c_char_p, ctypes.c_float),
        *(pointer, number, pointer, number),
    ]
    library.encoder_run.argtypes = [pointer, pointer, number, pointer, number, pointer, number]
    return library


def backends_of(library: ctypes.CDLL) -> list[str]:
    """Return the backends that a library has, the fastest first."""
    names: list[str] = []
    while name := library.encoder_backend(len(names)):
        names.append(name.decode())
    return names


@lru_cache(maxsize=1)
def _may_use_amx() -> bool:
    if platform.machine() != "x86_64":
        return False
    return bool(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0)


def _graph_of(artifact: Artifact) -> Graph | None:
    """Return the graph of a model if the library computes what it does."""
    try:
        graph = read_graph(artifact.read(GRAPH_FILE))
    except ValueError:
        return None
    names = _names(artifact.manifest.shape)
    is_known = graph.name == GRAPH_NAME and all(
        name in graph.constants and graph.constants[name].dtype is _dtype(name, names)
        for name in names
    )
    return graph if is_known else None


def _sizes(graph: Graph, artifact: Artifact) -> _Sizes:
    shape = artifact.manifest.shape
    words, positions = (
        next(iter(graph.constants[name].shape), 0) for name in ("words", _POSITIONS)
    )
    return _Sizes(
        *(shape.layers, shape.dim, shape.inner, shape.heads),
        *(len(artifact.manifest.labels), words, positions),
    )


def _bytes_for(library: ctypes.CDLL, sizes: _Sizes, backend: str) -> int:
    return int(library.encoder_bytes(ctypes.byref(sizes), backend.encode()))


def _names(shape: Shape) -> list[str]:
    """Return the names of the constants that native/encoder.cpp loads a model from, in its order."""
    names = ["words", "word_scales", _POSITIONS, *_normalization("distilbert.embeddings.LayerNorm")]
    names += ["pre_classifier.weight", "pre_classifier.bias"]
    names += ["classifier.weight", "classifier.bias"]
    for number in range(shape.layers):
        layer = f"distilbert.transformer.layer.{number}."
        names += [
            *_product(f"{layer}attention.q_lin", biased=True),
            *_product(f"{layer}attention.k_lin"),
            *_product(f"{layer}attention.v_lin"),
            *_product(f"{layer}attention.out_lin", biased=True),
            *_normalization(f"{layer}sa_layer_norm"),
            *_product(f"{layer}ffn.lin1", biased=True),
            *_product(f"{layer}ffn.lin2"),
            *_normalization(f"{layer}output_layer_norm"),
        ]
    return names


def _scale_names(shape: Shape) -> list[str]:
    """Return the names of the fixed scales before attention and the feed-forward, layer by layer."""
    names = ["distilbert.embeddings.LayerNorm.fixed"]
    for number in range(shape.layers):
        layer = f"distilbert.transformer.layer.{number}."
        names += [f"{layer}sa_layer_norm.fixed", f"{layer}output_layer_norm.fixed"]
    return names[:-1]


def _dtype(name: str, names: Collection[str]) -> type[np.generic]:
    is_weight = name.endswith(".weight") and name.removesuffix("weight") + "scale" in names
    return np.int8 if is_weight or name == "words" else np.float32


def _normalization(name: str) -> tuple[str, str]:
    return f"{name}.weight", f"{name}.bias"


def _product(name: str, *, biased: bool = False) -> tuple[str, ...]:
    return f"{name}.weight", f"{name}.scale", *((f"{name}.bias",) if biased else ())
