"""Structured logs, and reports of errors and stacks that hold no values."""
