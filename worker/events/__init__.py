"""The records that flow through the worker, and how they are decoded and encoded."""
