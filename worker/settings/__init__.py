"""Every setting, once: what there is, and where values come from."""
