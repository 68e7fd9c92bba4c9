"""Builds the library of the native engine, with the compiler that the wheel `ziglang` brings.

One compiler for all: speed and bits do not depend on what a machine has, and aarch64 is built on x86-64
as well. As a build hook of hatch it runs with every install and every wheel; by hand it is

    python native/build.py [--emulated] [--target aarch64] [-o libencoder.so]

With --emulated, every backend is built for this machine, whatever instructions it has: tests compare them.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES: Final = Path(__file__).parent
LIBRARY: Final = SOURCES.parent / "worker" / "inference" / "libencoder.so"
# Of the machine that a wheel is built for, where that is not this one.
TARGET_VARIABLE: Final = "WORKER_BUILD_TARGET"

# Nothing may change the order or the rounding of an operation: the bits are the same everywhere.
_FLAGS: Final = (
    *("-std=c++20", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-exceptions", "-fno-rtti"),
    *("-fPIC", "-fvisibility=hidden", "-g0", "-Wall", "-Wextra", "-Wno-psabi", "-Werror"),
)
# The instructions that each file may use.
_CPUS: Final = {
    "x86_64": {
        "encoder": "x86_64",
        "avx2": "x86_64_v3",
        "avxvnni": "x86_64_v3+avxvnni",
        "avx512vnni": "x86_64_v4+avx512vnni",
        "amx": "x86_64_v4+avx512vnni+amx_tile+amx_int8",
    },
    "aarch64": {"encoder": "generic", "neon": "generic+dotprod"},
}
_ALL: Final = ("encoder", "avx2", "avxvnni", "avx512vnni", "amx", "neon")
_EMULATING_CPU: Final = {"x86_64": "x86_64_v3", "aarch64": "generic"}


def build(output: Path, target: str, *, emulated: bool = False) -> None:
    """Build the library for a kind of machine.

    Raises:
        subprocess.CalledProcessError: a file does not compile.

    """
    cpus = dict.fromkeys(_ALL, _EMULATING_CPU[target]) if emulated else _CPUS[target]
    with tempfile.TemporaryDirectory() as folder:
        # Nothing is left in the home folder of whoever installs this.
        caches = {"ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder}
        zig = [sys.executable, "-m", "ziglang", "c++", "-target", f"{target}-linux-gnu.2.17"]

        def run(*arguments: str) -> None:
            # Relative names, so that no path of this machine gets into the library.
            subprocess.run(  # noqa: S603 - the compiler, with arguments of our own
                [*zig, *arguments], cwd=SOURCES, env=os.environ | caches, check=True
            )

        def compile_file(name: str) -> str:
            made = f"{folder}/{name}.o"
            more = ["-DEMULATED"] if emulated else []
            run("-c", *_FLAGS, *more, f"-mcpu={cpus[name]}", f"{name}.cpp", "-o", made)
            return made

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            files = list(pool.map(compile_file, cpus))
        draft = f"{folder}/{LIBRARY.name}"
        run("-shared", "-nostdlib", "-s", "-Wl,--build-id=none", *files, "-o", draft)
        output.write_bytes(Path(draft).read_bytes())


class NativeBuildHook(BuildHookInterface[Any]):
    """Puts the library into what is installed, and the machine that it is for into a wheel's name."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the library, or say in a line why it is left out."""
        target = os.environ.get(TARGET_VARIABLE) or platform.machine()
        self._folder = tempfile.TemporaryDirectory()
        if target not in _CPUS or sys.platform != "linux":
            self.app.display_warning(f"no native engine: {sys.platform} on {target} is not known")
        elif not find_spec("ziglang"):
            self.app.display_warning(
                "no native engine: the wheel `ziglang`, a compiler, is missing"
            )
        elif version == "editable":
            build(LIBRARY, target)
        else:
            library = Path(self._folder.name) / LIBRARY.name
            build(library, target)
            place = LIBRARY.relative_to(SOURCES.parent)
            build_data["force_include"][str(library)] = str(place)
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-manylinux_2_17_{target}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002 - hatch's form
        """Remove what the wheel has by now."""
        self._folder.cleanup()


def main() -> None:
    """Build by hand."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--emulated", action="store_true")
    parser.add_argument("--target", choices=sorted(_CPUS), default=platform.machine())
    parser.add_argument("-o", dest="output", type=Path, default=LIBRARY)
    options = parser.parse_args()
    build(options.output, options.target, emulated=options.emulated)


if __name__ == "__main__":
    main()
