"""What the worker tells of itself: logs and progress. Never a text, never a user id."""
