"""Where records come from and where their outcomes go."""
