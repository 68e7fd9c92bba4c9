"""Looks at what is on this machine: the model, the cache folder, the CPU."""

from __future__ import annotations

import os
import platform
import stat
from typing import TYPE_CHECKING, Final

from worker.assembly import load_model, why_stand_in
from worker.check.findings import Finding, Level
from worker.errors import WorkerError
from worker.inference.cache import DiskCache, tokens_key
from worker.inference.classifier import Classifier
from worker.inference.cpu import cpu_flags
from worker.terminal.sentences import counted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from worker.settings.schema import Settings

# The flags of a CPU that decide how fast it multiplies int8 numbers.
_INT8_FLAGS: Final = frozenset(
    {"amx_int8", "asimddp", "avx2", "avx512_vnni", "avx_vnni", "i8mm", "sve"}
)


def model(settings: Settings) -> Iterator[Finding]:
    """Load the model, and score a text with it."""
    about = "model"
    try:
        artifact = load_model(settings)
        classifier = Classifier(artifact, memory_entries=0, backend=settings.engine.backend)
        classifier.check()
    except WorkerError as error:
        yield Finding(Level.FAIL, about, str(error))
        return
    name = f"{artifact.manifest.name} ({artifact.digest}) in {artifact.folder}"
    yield Finding(Level.OK, about, f"{name} has the right checksums, and scores a text")
    engine = classifier.engine.description
    if (reason := why_stand_in(settings, artifact)) is not None:
        yield Finding(Level.WARN, "engine", f"{engine}; not the native one: {reason}")
    else:
        yield Finding(Level.OK, "engine", engine)


def cache(settings: Settings) -> Iterator[Finding]:
    """Write to the disk cache as the worker does; without it, labels only take longer."""
    about = "cache folder"
    folder = settings.cache_directory
    if folder is None:
        yield Finding(Level.SKIP, about, "it is off, so no scores are remembered on disk")
        return
    disk = DiskCache(folder, settings.cache.disk_bytes)
    # The entry is the same each time, so that checks do not fill the cache.
    disk.put_many({tokens_key(b"worker check", ()): b""})
    disk.close()
    if disk.writes_skipped:
        text = f"{folder} {_cache_problem(folder)}; until then, no scores are remembered on disk"
        yield Finding(Level.WARN, about, text)
    else:
        yield Finding(Level.OK, about, f"{folder} can be written, and only its owner can read it")


def _cache_problem(folder: Path) -> str:
    try:
        status = folder.stat()
    except OSError as error:
        return f"cannot be created ({error.strerror}); name another, or create it"
    if not stat.S_ISDIR(status.st_mode):
        return "is not a folder; name another (cache.directory)"
    if status.st_uid != os.getuid():
        return "belongs to another user; name another, or change its owner"
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return "is open to other users; set its mode to 700, or name another"
    return "cannot be written; see its rights and its space"


def cpu(settings: Settings) -> Iterator[Finding]:
    """Say what the CPU offers."""
    offers = ", ".join(sorted(cpu_flags() & _INT8_FLAGS)) or "nothing for int8"
    yield Finding(Level.OK, "cpu", f"{platform.machine()} offers {offers}")
    cores = len(os.sched_getaffinity(0))
    if settings.run.processes > cores:
        problem = f"{settings.run.processes} processes would share {counted(cores, 'core')}"
        yield Finding(Level.WARN, "run.processes", f"{problem}; set it to {cores}")
