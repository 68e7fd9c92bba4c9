"""Speed, as ratios and medians within one run; each module says what it measures and how."""
