"""Tests with real Kafka: brokers that run here, and the proof that they can be trusted."""
