"""Where each thread of this process stands, for a process that is stuck."""

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
def private_errors() -> Iterator[None]:
    """Turn an error nobody expected into one without values, which may be someone's message.

    Raises:
        WorkerError: in place of any other error; where it happened is in the log.

    """
    try:
        yield
    except WorkerError:
        raise
    except Exception as error:  # noqa: BLE001 - that is what it is for
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
    """Log the stack of every thread: files, lines and functions, never a value."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():  # noqa: SLF001 - documented for debuggers
        stack = _format(traceback.extract_stack(frame))
        log.error("stack", thread=names.get(ident), stack=stack)


def _format(frames: traceback.StackSummary) -> list[str]:
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
