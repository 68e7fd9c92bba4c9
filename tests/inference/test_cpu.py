"""The flags of the CPU are read as Linux reports them, and decide its kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from worker.inference import cpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Machine = Callable[[str, str | None], None]

X86 = "processor\t: 0\nvendor_id\t: Some\nflags\t\t: fpu sse2 avx2 fma{}\nbugs\t\t: none avx512_vnni\n"
ARM = "processor\t: 0\nBogoMIPS\t: 100.00\nFeatures\t: fp asimd{}\nCPU part\t: 0xd0c\n"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Machine]:
    """Return a function that makes the CPU look like another, with a /proc/cpuinfo or without."""

    def become(architecture: str, cpuinfo: str | None) -> None:
        path = tmp_path / "cpuinfo"
        if cpuinfo is not None:
            path.write_text(cpuinfo, encoding="utf-8")
        monkeypatch.setattr(cpu, "Path", lambda _: path)
        monkeypatch.setattr("platform.machine", lambda: architecture)

    cpu.cpu_flags.cache_clear()
    yield become
    cpu.cpu_flags.cache_clear()


def test_flags_are_those_that_linux_reports_for_x86(machine: Machine) -> None:
    machine("x86_64", X86.format(" avx_vnni"))
    assert cpu.cpu_flags() == {"fpu", "sse2", "avx2", "fma", "avx_vnni"}


def test_flags_are_those_that_linux_reports_for_arm(machine: Machine) -> None:
    machine("aarch64", ARM.format(" sve"))
    assert cpu.cpu_flags() == {"fp", "asimd", "sve"}


@pytest.mark.parametrize("cpuinfo", [None, "", "processor\t: 0\n", "flags\n", "\x00\n::\n"])
def test_where_linux_reports_no_flags_there_are_none(machine: Machine, cpuinfo: str | None) -> None:
    machine("x86_64", cpuinfo)
    assert cpu.cpu_flags() == frozenset()


def test_cpuinfo_that_is_not_utf8_is_read_all_the_same(machine: Machine, tmp_path: Path) -> None:
    machine("x86_64", "")
    (tmp_path / "cpuinfo").write_bytes(b"model name\t: \xff\nflags\t: avx2\n")
    assert cpu.cpu_flags() == {"avx2"}


def test_the_kind_of_cpu_names_what_decides_rounding_and_nothing_else(machine: Machine) -> None:
    machine("x86_64", X86.format(" avx512_vnni aes avx512f"))
    assert cpu.cpu_kind() == "x86_64 avx2 avx512_vnni avx512f fma"


def test_the_kind_of_cpu_is_its_architecture_where_nothing_else_is_known(machine: Machine) -> None:
    machine("aarch64", None)
    assert cpu.cpu_kind() == "aarch64"
