"""What a user would get who picked something else: other engines, other ways from Kafka to Kafka."""
