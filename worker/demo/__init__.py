"""Chat to try the worker with: examples, and an endless stream made from them."""
