"""The records that flow, and their bytes."""
