"""`worker run`: one process or several, from Kafka to Kafka."""
