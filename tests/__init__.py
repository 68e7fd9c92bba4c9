"""The specification of the worker, as tests."""
