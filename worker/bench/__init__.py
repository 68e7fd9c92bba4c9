"""`worker bench` and `worker plan`: how fast a model is on this machine, and what a rate needs."""
