"""Send messages to Kafka and read their labels back, with kafka-python.

A worker must be running between the two topics. `docker compose up` starts Kafka and workers at
the default address. With a Kafka of your own, start one with
`worker run --brokers HOST:PORT --input-topics chat --output-topic labels`.

Run it: python examples/produce_and_read.py [--brokers HOST:PORT] [--input chat] [--output labels]
"""

from __future__ import annotations

import argparse
import json
import sys
from uuid import uuid4

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

# Messages of one user have one key, so they stay in one partition and in order.
MESSAGES = (
    ("lantern", "hello, is anybody up for a round"),
    ("lantern", "that was the best game of my life, thank you all"),
    ("otter_7", "I am scared to go down there alone"),
)
PATIENCE_MS = 60_000


def main() -> int:
    """Send all messages, then print the label of each."""
    parser = argparse.ArgumentParser(description="Send messages to Kafka and read their labels.")
    parser.add_argument("--brokers", default="localhost:9092", help="host:port of a broker")
    parser.add_argument("--input", default="chat", help="the topic that the worker reads")
    parser.add_argument("--output", default="labels", help="the topic that the worker writes")
    arguments = parser.parse_args()

    consumer = KafkaConsumer(bootstrap_servers=arguments.brokers, consumer_timeout_ms=PATIENCE_MS)
    stand_at_the_end(consumer, arguments.output)
    texts = send(arguments.brokers, arguments.input)
    # The topic has labels of other programs as well; an id says which are ours.
    waiting = set(texts)
    for record in consumer:
        labelled = json.loads(record.value)
        if labelled["id"] in waiting:
            waiting.remove(labelled["id"])
            print(f"{texts[labelled['id']]!r}: {', '.join(labelled['labels']) or 'no label'}")
        if not waiting:
            break
    consumer.close()
    if waiting:
        print(f"{len(waiting)} messages got no label: is a worker running?", file=sys.stderr)
    return 1 if waiting else 0


def stand_at_the_end(consumer: KafkaConsumer, topic: str) -> None:
    """Begin to read where the topic ends now, before anything is sent."""
    numbers = consumer.partitions_for_topic(topic) or ()
    partitions = [TopicPartition(topic, number) for number in numbers]
    consumer.assign(partitions)
    consumer.seek_to_end(*partitions)
    # The client looks up the end only when it is asked for the position.
    for partition in partitions:
        consumer.position(partition)


def send(brokers: str, topic: str) -> dict[str, str]:
    """Send all messages and return their texts by id."""
    producer = KafkaProducer(bootstrap_servers=brokers, acks="all")
    texts = {}
    for user, text in MESSAGES:
        message = {"id": f"example-{uuid4()}", "user": user, "text": text}
        producer.send(topic, key=user.encode(), value=json.dumps(message).encode())
        texts[message["id"]] = text
    producer.flush()
    producer.close()
    return texts


if __name__ == "__main__":
    sys.exit(main())
