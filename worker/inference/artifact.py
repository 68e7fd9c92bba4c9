"""The artifact: a folder with a model, its tokenizer and the manifest that describes them.

It is the only bridge between building a model and running it. Every file is compared with the
manifest before any work, and again as it is loaded, so that no label ever comes from a model that
is damaged or was changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import Field, ValidationError, model_validator

from worker.errors import ArtifactError, ConfigurationError
from worker.inference.decisions import Task
from worker.strict import Fraction, Strict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from io import BufferedReader

GRAPH_FILE: Final = "model.onnx"
WEIGHTS_FILE: Final = "weights.bin"
TOKENIZER_FILE: Final = "tokenizer.json"
MANIFEST_FILE: Final = "manifest.json"
BUILT_IN_MODEL: Final = Path(__file__).parents[1] / "models" / "emotion"
FileName = Literal["model.onnx", "weights.bin", "tokenizer.json"]
FILES: Final[tuple[FileName, ...]] = (GRAPH_FILE, WEIGHTS_FILE, TOKENIZER_FILE)
# Far above any model of the kind; a sparse file of terabytes must not be hashed or loaded.
_MOST_BYTES: Final = {WEIGHTS_FILE: 8 << 30, MANIFEST_FILE: 16 << 20}
_MOST_BYTES_OF_OTHERS: Final = 256 << 20
_NAME_A_FOLDER: Final = "name a model folder such as `worker prepare` writes"
_DIGEST_DIGITS: Final = 16

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class LabelQuality(Strict):
    """Precision, recall and F1 of one label, and how many texts truly have it."""

    precision: Fraction
    recall: Fraction
    f1: Fraction
    support: Annotated[int, Field(ge=0)]


class Quality(Strict):
    """How good the labels of one model are on one file of labelled texts.

    `accuracy` is the share of texts whose whole set of labels is right. Macro F1 is the mean of
    the labels' F1; micro F1 counts the decisions on all labels together.
    """

    texts: Annotated[int, Field(ge=1)]
    accuracy: Fraction
    macro_f1: Fraction
    micro_f1: Fraction
    labels: dict[str, LabelQuality]


class MeasuredQuality(Strict):
    """Quality of checkpoint (fp32) and artifact (int8) on one file, and how far they agree.

    `decision_agreement` is the share of single decisions, text by label, that are the same;
    `label_set_agreement` is the share of texts for which all of them are.
    """

    file: str
    sha256: Sha256
    fp32: Quality
    int8: Quality
    decision_agreement: Fraction
    label_set_agreement: Fraction


class Calibration(Strict):
    """The texts on which the scales of activations that leave a normalization were measured."""

    file: str
    sha256: Sha256
    texts: Annotated[int, Field(ge=1)]


class Provenance(Strict):
    """Where the weights come from.

    `training` repeats what `worker finetune` recorded, and is null for a checkpoint that it did
    not make. Without `calibration`, all activations are quantized by row.
    """

    checkpoint: str
    weights_sha256: Sha256
    training: dict[str, object] | None
    calibration: Calibration | None = None


class Shape(Strict):
    """The size of a model: how many layers, their width `dim`, and that of the feed-forward."""

    layers: Annotated[int, Field(ge=1)]
    dim: Annotated[int, Field(ge=1)]
    inner: Annotated[int, Field(ge=1)]
    heads: Annotated[int, Field(ge=1)]

    def products(self, batch: int, tokens: int) -> list[tuple[int, int, int]]:
        """Return the int8 matrix products of a forward pass as (rows, depth, columns) each."""
        shapes = []
        for layer in range(1, self.layers + 1):
            rows = batch * tokens
            shapes += [(rows, self.dim, self.dim)] * 3
            # After attention, the last layer goes on with the first token of each text alone.
            rows = batch if layer == self.layers else rows
            shapes += [(rows, self.dim, self.dim), (rows, self.dim, self.inner)]
            shapes += [(rows, self.inner, self.dim)]
        return shapes


class Manifest(Strict):
    """What an artifact holds; `quality` is null where it was not measured."""

    schema_version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    task: Task
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    thresholds: dict[str, Fraction]
    max_tokens: Annotated[int, Field(ge=3)]
    shape: Shape
    files: dict[FileName, Sha256]
    source: Provenance
    quality: MeasuredQuality | None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if len(set(self.labels)) != len(self.labels) or set(self.thresholds) != set(self.labels):
            raise ValueError("labels must be distinct, with a threshold each")
        if set(self.files) != set(FILES):
            raise ValueError("files must list the graph, its weights and the tokenizer")
        return self


@dataclass(frozen=True, slots=True)
class Artifact:
    """A verified model folder, with the thresholds in effect, in the order of the labels."""

    folder: Path
    manifest: Manifest
    thresholds: tuple[float, ...]
    computation: str = ""
    """What computes scores where that is not the graph itself: `worker.inference.engine` says what."""

    @property
    def scores_digest(self) -> str:
        """Return a digest of all that decides a score: graph, weights, tokenizer, task, computation."""
        parts = [self.manifest.task, *(self.manifest.files[name] for name in FILES)]
        return _digest([*parts, self.computation] if self.computation else [*parts])

    @property
    def digest(self) -> str:
        """Return a digest of all that decides a label: scores, labels, limit, thresholds."""
        parts = [self.manifest.labels, self.manifest.max_tokens, self.thresholds]
        return _digest([self.scores_digest, *parts])[:_DIGEST_DIGITS]

    def read(self, name: FileName) -> bytes:
        """Return a file of the model as it is in the manifest.

        Raises:
            ArtifactError: the file is missing, altered, too large or no regular file.

        """
        content = _read(self.folder / name)
        self._compare(name, hashlib.sha256(content).hexdigest())
        return content

    def verify(self) -> None:
        """Compare all files with the manifest.

        Raises:
            ArtifactError: a file is missing, altered, too large or no regular file.

        """
        for name in FILES:
            with _opened(self.folder / name) as file:
                self._compare(name, hashlib.file_digest(file, "sha256").hexdigest())

    def _compare(self, name: FileName, sha256: str) -> None:
        if sha256 != self.manifest.files[name]:
            raise ArtifactError(
                f"{self.folder / name} is damaged or altered: its sha256 is not the manifest's",
                "restore the model folder or prepare it anew",
            )


def load_artifact(folder: Path, thresholds: Mapping[str, float] | None = None) -> Artifact:
    """Verify a model folder; `thresholds` override the manifest's, label by label.

    Raises:
        ArtifactError: a file is missing, altered or not understood.
        ConfigurationError: a threshold is not a number from 0 to 1, or is for a label that the
            model does not have.

    """
    manifest = _read_manifest(folder / MANIFEST_FILE)
    effective = manifest.thresholds | _checked_thresholds(manifest, thresholds or {})
    artifact = Artifact(folder, manifest, tuple(effective[label] for label in manifest.labels))
    artifact.verify()
    return artifact


def _checked_thresholds(manifest: Manifest, thresholds: Mapping[str, float]) -> dict[str, float]:
    unknown = sorted(set(thresholds) - set(manifest.labels))
    if unknown:
        raise ConfigurationError(
            f"thresholds are set for labels that the model {manifest.name} does not have: "
            f"{', '.join(unknown)}",
            f"its labels are {', '.join(manifest.labels)}",
        )
    for label, threshold in thresholds.items():
        # A bool is a number to Python, and NaN is none that can be reached.
        is_number = isinstance(threshold, Real) and not isinstance(threshold, bool)
        if not is_number or not 0 <= threshold <= 1:
            raise ConfigurationError(
                f"the threshold of {label} is not a number from 0 to 1",
                "a label is given where its score, from 0 to 1, reaches the threshold",
            )
    # A 1 and a 1.0 must have one digest.
    return {label: float(threshold) for label, threshold in thresholds.items()}


def _read(path: Path) -> bytes:
    with _opened(path) as file:
        return file.read()


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    try:
        # Without it, opening a named pipe waits for ever.
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ArtifactError(f"{path} is not a regular file", _NAME_A_FOLDER)
            if status.st_size > _MOST_BYTES.get(path.name, _MOST_BYTES_OF_OTHERS):
                raise ArtifactError(
                    f"{path} has {status.st_size} bytes, more than any model's", _NAME_A_FOLDER
                )
            yield file
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}", _NAME_A_FOLDER) from None


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _read_manifest(path: Path) -> Manifest:
    content = _read(path)
    try:
        version = json.loads(content)["schema_version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ArtifactError(f"{path} is not a model manifest") from None
    if version != 1:
        raise ArtifactError(
            f"{path} has a schema version that this worker does not know (it knows 1)",
            "update the worker, or prepare the model anew",
        )
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"])
        raise ArtifactError(
            f"{path} is not a valid model manifest (at {where or 'its top level'})",
            "restore the model folder or prepare it anew",
        ) from None


def _digest(parts: list[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
