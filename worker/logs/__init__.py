"""Structured logs, and stacks without values."""
