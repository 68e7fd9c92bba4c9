"""An artifact is verified whole before any work."""

from __future__ import annotations

import json
import math
import os
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.conftest import NATIVE
from worker.errors import ArtifactError, ConfigurationError
from worker.inference.artifact import BUILT_IN_MODEL, MANIFEST_FILE, Artifact, load_artifact
from worker.inference.native_engine import NativeEngine
from worker.inference.onnxruntime_engine import OnnxruntimeEngine
from worker.inference.tokens import TextTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return load_artifact(BUILT_IN_MODEL)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / MANIFEST_FILE
    manifest = json.loads(path.read_bytes()) | changes
    path.write_text(json.dumps(manifest), encoding="utf-8")


def test_the_built_in_model_has_seven_labels_and_its_measured_quality(artifact: Artifact) -> None:
    manifest = artifact.manifest
    assert manifest.labels == ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
    assert manifest.quality
    assert manifest.quality.int8.macro_f1 > 0.62


@pytest.mark.parametrize("name", ["model.onnx", "weights.bin", "tokenizer.json", MANIFEST_FILE])
def test_a_missing_file_is_named(model_copy: Path, name: str) -> None:
    (model_copy / name).unlink()
    with pytest.raises(ArtifactError, match=f"cannot read .*{name}: No such file"):
        load_artifact(model_copy)


@pytest.mark.parametrize("name", ["model.onnx", "weights.bin", "tokenizer.json"])
def test_a_truncated_file_is_named(model_copy: Path, name: str) -> None:
    content = (model_copy / name).read_bytes()
    (model_copy / name).write_bytes(content[:-1])
    with pytest.raises(ArtifactError, match=f"{name} is damaged or altered"):
        load_artifact(model_copy)


@pytest.mark.parametrize("name", ["model.onnx", "weights.bin", "tokenizer.json"])
def test_a_single_changed_bit_is_noticed(model_copy: Path, name: str) -> None:
    content = bytearray((model_copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (model_copy / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name} is damaged or altered"):
        load_artifact(model_copy)


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("name", ["model.onnx", "weights.bin", "tokenizer.json", MANIFEST_FILE])
@pytest.mark.parametrize("put", [make_pipe, link_to_zeros])
def test_a_file_that_has_no_end_is_named(
    model_copy: Path, name: str, put: Callable[[Path], None]
) -> None:
    (model_copy / name).unlink()
    put(model_copy / name)
    with pytest.raises(ArtifactError, match=f"{name} is not a regular file"):
        load_artifact(model_copy)


@pytest.mark.parametrize("name", ["model.onnx", "weights.bin", "tokenizer.json", MANIFEST_FILE])
def test_a_file_that_is_larger_than_any_model_is_not_read(model_copy: Path, name: str) -> None:
    os.truncate(model_copy / name, 1 << 40)
    with pytest.raises(ArtifactError, match=f"{name} has 1099511627776 bytes"):
        load_artifact(model_copy)


def test_a_link_to_a_file_is_followed(model_copy: Path, tmp_path: Path) -> None:
    shutil.move(model_copy / "weights.bin", tmp_path / "elsewhere")
    (model_copy / "weights.bin").symlink_to(tmp_path / "elsewhere")
    load_artifact(model_copy)


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("model.onnx", OnnxruntimeEngine),
        ("weights.bin", OnnxruntimeEngine),
        pytest.param("model.onnx", NativeEngine, marks=NATIVE),
        pytest.param("weights.bin", NativeEngine, marks=NATIVE),
        ("tokenizer.json", TextTokenizer),
    ],
)
def test_a_file_that_changes_after_the_check_is_not_loaded(
    model_copy: Path, name: str, load: Callable[[Artifact], object]
) -> None:
    artifact = load_artifact(model_copy)
    (model_copy / name).write_bytes(b"another")
    with pytest.raises(ArtifactError, match=f"{name} is damaged or altered"):
        load(artifact)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"labels": []}', "\x00", "[" * 200_000]
)
def test_a_manifest_that_is_none_is_an_error(model_copy: Path, content: str) -> None:
    (model_copy / MANIFEST_FILE).write_text(content, encoding="utf-8")
    with pytest.raises(ArtifactError, match="is not a model manifest"):
        load_artifact(model_copy)


def test_a_manifest_of_the_future_says_to_update(model_copy: Path) -> None:
    edit(model_copy, schema_version=2)
    with pytest.raises(ArtifactError, match=r"schema version .* update the worker"):
        load_artifact(model_copy)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"labels": ["joy"]}, "labels"),
        ({"labels": ["joy", "joy"]}, "its top level"),
        ({"thresholds": {"joy": 0.5}}, "its top level"),
        ({"thresholds": {"joy": 2}}, "thresholds.joy"),
        ({"task": "guess"}, "task"),
        ({"max_tokens": 2}, "max_tokens"),
        ({"files": {"model.onnx": "0" * 64}}, "its top level"),
        ({"files": {"../secret": "0" * 64}}, "files"),
        ({"name": "a name"}, "name"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_a_manifest_that_makes_no_sense_says_where(
    model_copy: Path, changes: dict[str, Any], where: str
) -> None:
    edit(model_copy, **changes)
    with pytest.raises(ArtifactError, match=f"not a valid model manifest \\(at {where}"):
        load_artifact(model_copy)


def test_thresholds_can_be_overridden_label_by_label(artifact: Artifact) -> None:
    changed = load_artifact(BUILT_IN_MODEL, {"joy": 0.9})
    joy = artifact.manifest.labels.index("joy")
    assert changed.thresholds[joy] == 0.9
    assert changed.thresholds[:joy] == artifact.thresholds[:joy]


def test_a_threshold_for_a_label_that_is_none_names_the_labels() -> None:
    with pytest.raises(ConfigurationError, match="does not have: boredom; its labels are anger, "):
        load_artifact(BUILT_IN_MODEL, {"boredom": 0.5})


def test_the_digest_covers_thresholds_but_the_scores_digest_does_not(artifact: Artifact) -> None:
    changed = load_artifact(BUILT_IN_MODEL, {"joy": 0.9})
    assert changed.digest != artifact.digest
    assert changed.scores_digest == artifact.scores_digest


@pytest.mark.parametrize("name", ["model.onnx", "weights.bin", "tokenizer.json"])
def test_both_digests_cover_model_and_tokenizer(
    model_copy: Path, artifact: Artifact, name: str
) -> None:
    manifest = artifact.manifest
    files = dict(manifest.files) | {name: "0" * 64}
    changed = Artifact(
        model_copy, manifest.model_copy(update={"files": files}), artifact.thresholds
    )
    assert changed.digest != artifact.digest
    assert changed.scores_digest != artifact.scores_digest


def test_the_digest_covers_the_token_limit(artifact: Artifact) -> None:
    manifest = artifact.manifest.model_copy(update={"max_tokens": 17})
    assert Artifact(BUILT_IN_MODEL, manifest, artifact.thresholds).digest != artifact.digest


@pytest.mark.parametrize(
    "threshold", [5.0, -0.1, math.nan, math.inf, -math.inf, "0.5", True, None, [0.5]]
)
def test_a_threshold_that_no_score_can_be_compared_with_is_refused(threshold: Any) -> None:
    with pytest.raises(ConfigurationError, match="the threshold of joy is not a number from 0 to"):
        load_artifact(BUILT_IN_MODEL, {"joy": threshold})


@pytest.mark.parametrize("threshold", [1, np.float64(1), np.float32(1)])
def test_a_threshold_is_any_kind_of_number_and_equal_ones_have_one_digest(threshold: Any) -> None:
    changed = load_artifact(BUILT_IN_MODEL, {"joy": threshold})
    assert changed.digest == load_artifact(BUILT_IN_MODEL, {"joy": 1.0}).digest
