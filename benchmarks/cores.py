"""A core for what is measured, and the others for what measures it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def take_core() -> int:
    """Return the core that what is measured has to itself, and leave it, where there are two."""
    cores = os.sched_getaffinity(0)
    core = max(cores)
    os.sched_setaffinity(0, cores - {core} or cores)
    return core


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Let processes that are started here have this core, and no other."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)
