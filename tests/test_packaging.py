"""The package as it is published: which Pythons it takes, what it holds, and what CI does with it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from worker.inference import native_engine

ROOT = Path(__file__).parents[1]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT, BUILD_SYSTEM = PYPROJECT["project"], PYPROJECT["build-system"]
REQUIREMENTS = ["requirements/runtime.txt", "requirements/packaging.txt"]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
CLASSIFIER = re.compile(r"Programming Language :: Python :: (3\.\d+)")
# An sdist holds no workflows.
FROM_GIT = pytest.mark.skipif(not WORKFLOW.parent.exists(), reason="this is no checkout")


def supported() -> list[str]:
    """Return the Pythons that the classifiers name."""
    matches = (CLASSIFIER.fullmatch(classifier) for classifier in PROJECT["classifiers"])
    return [match[1] for match in matches if match]


def jobs() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load(WORKFLOW.read_text("utf-8"))["jobs"]
    return parsed


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): number for name, number in pinned}


def hashed(name: str) -> dict[str, str]:
    """Return the pins of a file in `requirements`, all of which have digests."""
    content = (ROOT / "requirements" / f"{name}.txt").read_text("utf-8")
    lines = content.replace("\\\n", "").splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    assert all(re.search(r" --hash=sha256:[0-9a-f]{64}", line) for line in pinned)
    pairs = (re.match(r"(\S+)==(\S+)", line) for line in pinned)
    return {canonicalize_name(pair[1]): pair[2] for pair in pairs if pair}


def needed(requirements: list[str]) -> set[str]:
    """Return the names of what is installed here for requirements, and for theirs."""
    names: set[str] = set()
    waiting = [Requirement(each) for each in requirements]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = requirement.extras or {""}
        markers = requirement.marker
        if name in names or (markers and not any(markers.evaluate({"extra": e}) for e in extras)):
            continue
        names.add(name)
        for text in requires(requirement.name) or []:
            child = Requirement(text)
            if not child.marker or any(child.marker.evaluate({"extra": e}) for e in extras):
                child.marker = None
                waiting.append(child)
    return names


def test_all_that_running_needs_is_pinned_by_digest_with_the_tested_versions() -> None:
    runtime, tested = hashed("runtime"), pins()
    assert runtime.keys() == needed(PROJECT["dependencies"])
    assert runtime == {name: tested[name] for name in runtime}


def test_what_builds_the_package_is_pinned_by_digest() -> None:
    needed = BUILD_SYSTEM["requires"]
    assert hashed("packaging").items() >= {tuple(each.split("==")) for each in needed}
    names = (ROOT / "requirements" / "packaging.in").read_text("utf-8").splitlines()
    assert set(needed) <= set(names)
    assert set(needed) <= {each.split(" ")[0] for each in PROJECT["optional-dependencies"]["dev"]}
    # `make demo` installs both in one environment.
    assert {**pins(), **hashed("packaging")}.items() >= pins().items()


@pytest.mark.parametrize("name", ["constraints.txt", *REQUIREMENTS])
def test_pins_record_no_addresses(name: str) -> None:
    assert "://" not in (ROOT / name).read_text("utf-8")


def test_pip_installs_on_the_pythons_of_the_classifiers_and_on_no_other() -> None:
    accepted = SpecifierSet(PROJECT["requires-python"])
    minors = [f"3.{minor}" for minor in range(40)]
    assert [minor for minor in minors if accepted.contains(f"{minor}.5")] == supported()


def test_these_tests_run_on_a_supported_python() -> None:
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in supported()


@FROM_GIT
def test_ci_runs_on_each_supported_python_and_on_no_other() -> None:
    assert jobs()["test"]["strategy"]["matrix"]["python"] == supported()


@FROM_GIT
@pytest.mark.parametrize(
    ("schema", "files"), [("workflows", "workflows/*.yml"), ("issue-forms", "ISSUE_TEMPLATE/*.yml")]
)
def test_github_can_read_its_files(schema: str, files: str) -> None:
    paths = sorted((ROOT / ".github").glob(files))
    assert paths
    command = ["-m", "check_jsonschema", "--builtin-schema", f"vendor.github-{schema}"]
    checked = subprocess.run(
        [sys.executable, *command, *paths], capture_output=True, encoding="utf-8", check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@FROM_GIT
def test_ci_runs_what_one_runs_at_home() -> None:
    commands = [step["run"] for step in jobs()["test"]["steps"] if "run" in step]
    assert commands[-1] == ".ci/run"
    assert "make test" in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()[-1]


@FROM_GIT
def test_ci_builds_both_packages() -> None:
    commands = [step["run"] for step in jobs()["package"]["steps"] if "run" in step]
    assert "python -m build" in commands


@FROM_GIT
def test_hooks_run_what_make_test_runs() -> None:
    """Hooks run the tools of .venv, so that both always use the same versions."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    (repository,) = config["repos"]
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for hook in repository["hooks"]:
        program = hook["entry"].removeprefix(".venv").removesuffix(" --force-exclude")
        assert hook["language"] == "system"
        assert f"$(VENV){program}" in makefile


def test_what_is_required_is_pinned_and_a_pin_is_what_is_required() -> None:
    extras = PROJECT["optional-dependencies"].values()
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    for requirement in map(Requirement, lines):
        assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_the_newest_release_of_the_changelog_is_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    releases = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)
    assert releases[0] == PROJECT["version"] == version("chat-label-worker")


# The library of the native engine.


def copied(folder: Path) -> Path:
    """Return a copy of what a wheel is made of, but for the weights."""
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    for name in ("native", "worker"):
        unwanted = shutil.ignore_patterns("*.so", "*.bin", "__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
    return folder


def wheel_of(folder: Path, **variables: str) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "."]
    subprocess.run(command, cwd=folder, env=os.environ | variables, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.slow
@pytest.mark.parametrize(("machine", "number"), [("x86_64", 62), ("aarch64", 183)])
def test_a_wheel_for_each_kind_of_machine_can_be_built_on_any(
    tmp_path: Path, machine: str, number: int
) -> None:
    wheel = wheel_of(copied(tmp_path), WORKER_BUILD_TARGET=machine)
    assert wheel.name.endswith(f"-py3-none-manylinux_2_17_{machine}.whl")
    with zipfile.ZipFile(wheel) as content:
        library = content.read("worker/inference/libencoder.so")
        assert not [name for name in content.namelist() if name.startswith("native/")]
    assert library[:4] == b"\x7fELF"
    assert int.from_bytes(library[18:20], "little") == number
    if machine == platform.machine():
        # Built elsewhere, it has the same bytes.
        assert library == native_engine.LIBRARY.read_bytes()


@pytest.mark.slow
def test_without_a_compiler_a_wheel_has_no_library(tmp_path: Path) -> None:
    wheel = wheel_of(copied(tmp_path), WORKER_BUILD_TARGET="abacus")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as content:
        assert "worker/inference/libencoder.so" not in content.namelist()


def test_the_polynomials_are_what_their_program_writes() -> None:
    command = [sys.executable, "native/polynomials.py"]
    written = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert written == (ROOT / "native" / "polynomials.h").read_text("utf-8")
