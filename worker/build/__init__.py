"""Building a model. This needs the extra `build`, and the running side never imports it."""
