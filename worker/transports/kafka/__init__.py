"""Kafka as a transport: consume, label, publish, and lose nothing whatever dies."""
