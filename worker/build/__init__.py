"""Building a model: needs the extra `build`; never imported by the running side."""
