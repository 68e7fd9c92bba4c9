"""Structured logs on standard error: for people on a terminal, JSON lines otherwise.

Events have stable names; their values are counts, places and sentences of ours.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from structlog.typing import Processor

_STEPS: list[Processor] = [
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
_logger = logging.getLogger("worker")

# Bound to the standard logger: a program that imports the worker keeps its own log set-up.
log: structlog.stdlib.BoundLogger = structlog.wrap_logger(
    _logger,
    processors=[
        structlog.stdlib.filter_by_level,
        *_STEPS,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ],
    wrapper_class=structlog.stdlib.BoundLogger,
)


def configure_logs(level: str, form: str) -> None:
    """Send the worker's logs to standard error; `form` is auto, console or json."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if console
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
        )
    )
    # A log that cannot be written must not end what it reports on.
    logging.raiseExceptions = False
    _logger.handlers = [handler]
    _logger.setLevel(level.upper())
    _logger.propagate = False
