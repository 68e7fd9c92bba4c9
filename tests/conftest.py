"""What many tests need: the built-in model, loaded once, and settings that touch no home folder."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.database import DirectoryBasedExampleDatabase

from worker.inference.artifact import BUILT_IN_MODEL, MANIFEST_FILE, Artifact, load_artifact
from worker.inference.classifier import Classifier
from worker.inference.engine import Engine, load_model, open_engine
from worker.inference.native_engine import available_backends
from worker.inference.tokens import TextTokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

# Machines differ in speed: no test may depend on it.
settings.register_profile(
    "all", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
FUZZING = bool(os.environ.get("FUZZ"))
settings.register_profile(
    "fuzz",
    settings.get_profile("all"),
    derandomize=False,
    max_examples=2000,
    database=DirectoryBasedExampleDatabase(Path(__file__).parents[1] / "build" / "fuzz"),
)
settings.load_profile("fuzz" if FUZZING else "all")

# Shells ignore it in what they start in the background, and then so do the programs under test.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A word that is one token, whose embedding `poisoned_model` makes NaN.
POISON = "zebra"

# CI builds the native engine, on machines that can run it.
NATIVE = pytest.mark.skipif(
    not available_backends() and not os.environ.get("CI"),
    reason="the native engine was not built, or has nothing for this CPU",
)

# What costs much to set up, in this order, is set up in one of several test processes alone: three
# brokers, brokers with logins, and torch.
SET_UP_ONCE = ("kafka_cluster", "secure_kafka", "build")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order tests and group them, so that several processes come to their end together.

    First come the groups that stay in one process, then the slow tests, each of which goes to
    whichever process is free, then all others, a file at a time.
    """
    if FUZZING:
        items[:] = [item for item in items if hasattr(getattr(item, "obj", None), "hypothesis")]
    items.sort(
        key=lambda item: (*(name not in _needs(item) for name in SET_UP_ONCE), _is_fast(item))
    )
    for item in items:
        group = next((name for name in SET_UP_ONCE if name in _needs(item)), None)
        if group is None and _is_fast(item):
            group = item.location[0]
        if group is not None:
            item.add_marker(pytest.mark.xdist_group(group))


def _needs(item: pytest.Item) -> set[str]:
    """Return the fixtures of a test, and the folder that it stands in."""
    return {*getattr(item, "fixturenames", ()), item.path.parent.name}


def _is_fast(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is None


@pytest.fixture(autouse=True)
def _own_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for name in [name for name in os.environ if name.upper().startswith("WORKER_")]:
        monkeypatch.delenv(name)
    # Standard output is buffered for users.
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _slow_without_coverage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run what slow tests start without coverage: it takes a fifth of their time, and memory."""
    if not _is_fast(request.node):
        monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


@pytest.fixture(autouse=True)
def _own_logs() -> Iterator[None]:
    logger = logging.getLogger("worker")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


@pytest.fixture
def full_device() -> Iterator[BinaryIO]:
    """Return a device that takes no byte."""
    path = Path("/dev/full")
    if not path.exists():
        pytest.skip("only Linux has /dev/full")
    with path.open("wb") as device:
        yield device


@pytest.fixture(scope="session")
def artifact() -> Artifact:
    return load_model(BUILT_IN_MODEL)


@pytest.fixture(scope="session")
def engine(artifact: Artifact) -> Engine:
    return open_engine(artifact)


@pytest.fixture
def classifier(artifact: Artifact) -> Classifier:
    """Return a classifier that remembers nothing."""
    return Classifier(artifact, memory_entries=0)


@pytest.fixture
def model_copy(tmp_path: Path) -> Path:
    """Return a copy of the built-in model that a test may damage."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in BUILT_IN_MODEL.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def poisoned_model(model_copy: Path) -> Path:
    """Return a model whose scores are not finite for a text with the word POISON."""
    onnx = pytest.importorskip("onnx")
    (tokens,) = TextTokenizer(load_artifact(model_copy)).encode([POISON])
    _, token_id, _ = tokens.ids
    graph = onnx.load(model_copy / "model.onnx", load_external_data=False).graph
    (scales,) = (value for value in graph.initializer if value.name == "word_scales")
    (offset,) = (int(entry.value) for entry in scales.external_data if entry.key == "offset")
    with (model_copy / "weights.bin").open("r+b") as file:
        file.seek(offset + 4 * token_id)
        file.write(np.float32("nan").tobytes())
    sign(model_copy, "weights.bin")
    return model_copy


def sign(folder: Path, name: str) -> None:
    """Make a model's manifest fit a file that was changed."""
    path = folder / MANIFEST_FILE
    manifest = json.loads(path.read_bytes())
    manifest["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    path.write_text(json.dumps(manifest), encoding="utf-8")
