"""Where each thread of this process stands, for a process that is stuck."""

from __future__ import annotations

import sys
import threading
import traceback

from worker.telemetry.logs import log


def log_stacks() -> None:
    """Log the stack of every thread: files, lines and functions, never a value."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():  # noqa: SLF001 - documented for debuggers
        stack = [f"{f.filename}:{f.lineno} {f.name}" for f in traceback.extract_stack(frame)]
        log.error("stack", thread=names.get(ident), stack=stack)
