"""Chat to try the worker with: examples, an endless stream made from them, and a view of labels."""
