"""`worker check`: finds out whether `worker run` can work here, and what it could lose."""
