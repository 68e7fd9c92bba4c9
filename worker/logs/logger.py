"""Structured logs on standard error: lines for people on a terminal, JSON lines otherwise.

Log events have stable names. Their values are counts, names of settings and topics, and sentences of
ours, never a text or a user id.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import TYPE_CHECKING, Any

import structlog

from worker.terminal.sentences import escaped

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor

_STEPS: list[Processor] = [
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
_logger = logging.getLogger("worker")

# It writes through Python's own logging, so a program that imports the worker keeps its log set-up.
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
    """Send the worker's logs from `level` up to standard error.

    `form` is "console", "json", or "auto", which is "console" on a terminal and "json" elsewhere.
    """
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    steps: list[Processor] = (
        [_escape_values, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
        if console
        else [structlog.processors.JSONRenderer(_to_json)]
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *steps]
        )
    )
    # An error while a log is written must not end the work that the log is about.
    logging.raiseExceptions = False
    _logger.handlers = [handler]
    _logger.setLevel(level.upper())
    _logger.propagate = False


def _escape_values(_: object, __: str, event: EventDict) -> EventDict:
    """Keep names that others chose from controlling the terminal."""
    return {
        name: escaped(value) if isinstance(value, str) else value for name, value in event.items()
    }


def _to_json(event: object, **options: Any) -> str:  # noqa: ANN401 - structlog chooses them
    return escaped(json.dumps(event, ensure_ascii=False, **options))
