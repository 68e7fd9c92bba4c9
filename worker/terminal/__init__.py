"""What the commands say and ask on a terminal, and how they take its signals."""
