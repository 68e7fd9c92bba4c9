"""The command line: what there is to call, and what becomes of errors."""

from __future__ import annotations

from worker.cli.entry import main

__all__ = ["main"]
