"""`worker dead-letters`: look at dead letters, send them back in, go past what cannot be read."""
