"""`worker check`: whether `worker run` can work here, and what it could lose."""
