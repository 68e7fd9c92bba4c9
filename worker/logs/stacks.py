"""Reports where code was: of an unexpected error, and of all threads when a process is stuck.

A stack is logged as files, lines and functions. Values are left out: they may be someone's message.
"""

from __future__ import annotations

import sys
import threading
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING

from worker.errors import WorkerError
from worker.logs.logger import log

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def redacted_errors() -> Iterator[None]:
    """Replace any error that is not a `WorkerError` by one whose message holds no values.

    A `BrokenPipeError` passes, too: who reads the output has closed it.

    Raises:
        WorkerError: another error was raised; its type and its stack are in the log.

    """
    try:
        yield
    except (WorkerError, BrokenPipeError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever was raised may hold a message
        log.error(
            "unexpected",
            error=type(error).__name__,
            stack=_format(traceback.extract_tb(error.__traceback__)),
        )
        raise WorkerError(
            f"an unexpected error ({type(error).__name__}) ended the work",
            "the log says where; please report it",
        ) from None


def log_stacks() -> None:
    """Log the stack of every thread of this process."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():  # noqa: SLF001 - it is documented, for debuggers
        stack = _format(traceback.extract_stack(frame))
        log.error("stack", thread=names.get(ident), stack=stack)


def _format(frames: traceback.StackSummary) -> list[str]:
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
