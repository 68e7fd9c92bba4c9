"""Seconds, which the worker counts in, as the milliseconds that kafka-python takes."""

from __future__ import annotations


def in_ms(seconds: float) -> int:
    """Return whole milliseconds, which are 0 for less than one: the client then does not wait."""
    return int(seconds * 1000)


def in_ms_at_least_one(seconds: float) -> int:
    """Return whole milliseconds for a call that takes 0 for no limit, or gives up at once."""
    return max(1, in_ms(seconds))
