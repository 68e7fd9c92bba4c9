"""Metrics and health: what the worker reports about itself while it runs."""
