"""The public Python API: it is typed, quick to import, has one version, and its examples hold."""

from __future__ import annotations

import doctest
import importlib
import inspect
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import worker

PACKAGE = Path(worker.__file__).parent
PYPROJECT = PACKAGE.parent / "pyproject.toml"
MODULES = [
    "worker",
    "worker.errors",
    "worker.inference.classifier",
    "worker.inference.decisions",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried
    assert not failed


@pytest.mark.parametrize("name", worker.__all__)
def test_what_the_package_exports_is_there_and_has_an_example(name: str) -> None:
    exported = getattr(worker, name)
    assert exported.__module__ in MODULES
    assert ">>> " in exported.__doc__


@pytest.mark.parametrize(
    ("name", "sections"),
    [
        ("load", ["Args:", "Returns:", "Raises:", "Example:"]),
        ("classify", ["Args:", "Returns:", "Raises:", "Example:"]),
        ("check", ["Raises:", "Example:"]),
        ("close", ["Example:"]),
    ],
)
def test_each_method_of_the_classifier_says_what_it_takes_gives_and_raises(
    name: str, sections: list[str]
) -> None:
    method = getattr(worker.Classifier, name)
    lines = [line.strip() for line in method.__doc__.splitlines()]
    assert [line for line in lines if line.endswith("s:") or line == "Example:"] == sections
    arguments = [
        argument for argument in inspect.signature(method).parameters if argument != "self"
    ]
    assert all(any(line.startswith(f"{each}: ") for line in lines) for each in arguments)


def test_the_package_says_that_it_is_typed() -> None:
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    assert "Typing :: Typed" in project["classifiers"]
    assert (PACKAGE / "py.typed").read_bytes() == b""


def test_the_version_is_that_of_the_distribution_and_of_the_command() -> None:
    command = [sys.executable, "-m", "worker", "--version"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output == f"worker {worker.__version__}\n"
    assert worker.__version__ == version("chat-label-worker")


def test_importing_the_package_loads_nothing_but_its_errors() -> None:
    report = (
        "import sys; before = set(sys.modules); import worker; print(*(set(sys.modules) - before))"
    )
    output = subprocess.run(
        [sys.executable, "-c", report], capture_output=True, text=True, check=True
    )
    ours = {name for name in output.stdout.split() if name.startswith("worker")}
    assert ours == {"worker", "worker.errors"}
    assert "importlib.metadata" not in output.stdout.split()
