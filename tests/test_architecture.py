"""The rooms of the worker: who may import whom, and what the running side never loads."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import worker

SOURCE = Path(worker.__file__).parent
HEAVY = {"onnxruntime", "numpy", "tokenizers", "pydantic", "diskcache"}
BUILD_ONLY = {"torch", "transformers", "onnx", "accelerate", "safetensors", "emoji"}


def loaded_by(code: str) -> set[str]:
    """Return the names of the packages that are loaded after some code."""
    report = "import sys; print('loaded', *{name.partition('.')[0] for name in sys.modules})"
    output = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=False
    )
    assert output.returncode == 0, output.stderr
    return set(output.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    "code",
    [
        "import worker",
        "import worker.cli",
        "from worker.cli.entry import main\ntry: main(['--version'])\nexcept SystemExit: pass",
        "from worker.cli.entry import main\ntry: main(['replay', '--help'])\nexcept SystemExit: pass",
        "from worker.cli.entry import main\nmain(['view', '/dev/null'])",
    ],
)
def test_help_and_view_wait_for_no_engine(code: str) -> None:
    assert not loaded_by(code) & (HEAVY | BUILD_ONLY)


def test_the_python_api_is_there_when_it_is_wanted() -> None:
    code = "from worker import Classification, Classifier; assert Classifier.load"
    assert "tokenizers" in loaded_by(code)
    with pytest.raises(AttributeError, match="no attribute 'Clasifier'"):
        _ = worker.Clasifier


def modules() -> dict[str, ast.Module]:
    """Return every module of the worker, by its name."""
    names = {path: path.relative_to(SOURCE.parent).with_suffix("") for path in SOURCE.rglob("*.py")}
    return {
        ".".join(name.parts).removesuffix(".__init__"): ast.parse(path.read_bytes())
        for path, name in names.items()
    }


MODULES = modules()
RUNNING_SIDE = [name for name in MODULES if not name.startswith("worker.build")]


def imports_of(tree: ast.AST) -> set[str]:
    """Return the modules that a module imports, wherever in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module
            assert not node.level, "imports are absolute"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
            names |= submodules or {node.module}
    return names


def imports_of_worker(name: str) -> set[str]:
    return {other for other in imports_of(MODULES[name]) if other in MODULES}


def test_running_a_model_loads_nothing_of_building_one() -> None:
    names = [name for name in RUNNING_SIDE if name != "worker.__main__"]
    assert "worker.replay.command" in names
    assert not loaded_by(f"import {', '.join(names)}") & BUILD_ONLY


@pytest.mark.parametrize("name", RUNNING_SIDE)
def test_nothing_that_runs_code_from_data_is_used(name: str) -> None:
    packages = {other.partition(".")[0] for other in imports_of(MODULES[name])}
    assert not packages & {"pickle", "_pickle", "marshal", "shelve", "dill", "joblib", "torch"}
    nodes = list(ast.walk(MODULES[name]))
    attributes = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    assert not attributes & {"torch.load", "np.load", "numpy.load"}
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    assert not names & {"eval", "exec", "__import__"}


# Who may import whom: a module of a layer those of its own layer and of the layers above it here.
LAYERS = [
    {"worker.addresses", "worker.errors", "worker.defaults", "worker.durable", "worker.strict"},
    {"worker.logs", "worker.terminal"},
    {"worker.inference"},
    {"worker"},
    {"worker.events", "worker.settings"},
    {"worker.telemetry"},
    {"worker.transports"},
    {"worker.transports.files", "worker.transports.kafka"},
    {"worker.pipeline", "worker.assembly", "worker.children"},
    {"worker.run"},
    {"worker.replay"},
    {"worker.evaluation", "worker.demo"},
    {"worker.check", "worker.create_topics", "worker.dead_letters", "worker.bench"},
    {"worker.build"},
    {"worker.cli"},
    {"worker.__main__"},
]
# Measuring a checkpoint instead of a model folder: an import inside a function, for the extra.
EXCEPTIONS = {("worker.evaluation.command", "worker.build.checkpoint")}


def layer_of(name: str) -> int:
    """Return the number of a module's layer, which is its package's unless it has one itself."""
    layers = {member: number for number, layer in enumerate(LAYERS) for member in layer}
    package = name.rpartition(".")[0]
    assert name in layers or package in layers.keys() - {"worker"}, f"{name} needs a layer"
    return layers[name] if name in layers else layers[package]


@pytest.mark.parametrize("name", MODULES)
def test_modules_import_downward_only(name: str) -> None:
    upward = {
        other for other in imports_of_worker(name) - {name} if layer_of(other) > layer_of(name)
    }
    assert upward <= {other for importer, other in EXCEPTIONS if importer == name}


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: imports_of_worker(name) for name in MODULES}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(order) == set(MODULES)


def test_only_the_commands_that_build_import_what_builds_and_only_when_called() -> None:
    importers = {
        name
        for name in RUNNING_SIDE
        if any(other.startswith("worker.build") for other in imports_of(MODULES[name]))
    }
    assert importers == {"worker.cli.building", "worker.evaluation.command"}
    for name in importers:
        at_once = [node for node in MODULES[name].body if not isinstance(node, ast.FunctionDef)]
        imported = set().union(*(imports_of(node) for node in at_once))
        assert not [other for other in imported if other.startswith("worker.build")]
