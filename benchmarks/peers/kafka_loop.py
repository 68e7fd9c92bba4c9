"""Contender: a loop of kafka-python around the pipeline of transformers, as people write it.

`each` takes a message at a time, and lets the client commit what it has handed out, whether or not
the labels arrived. `polls` is what a careful person makes of it: all that a poll gives, acknowledged,
then committed.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from kafka import KafkaConsumer, KafkaProducer
from transformers import pipeline

from benchmarks.peers.peer import PADDED


def each(consumer: KafkaConsumer, producer: KafkaProducer, target: str, classify: Any) -> None:  # noqa: ANN401 - transformers gives a pipeline no narrower type
    for message in consumer:
        (answer,) = classify(json.loads(message.value)["text"], truncation=True)
        producer.send(target, json.dumps(answer).encode(), message.key)


def polls(consumer: KafkaConsumer, producer: KafkaProducer, target: str, classify: Any) -> None:  # noqa: ANN401 - transformers gives a pipeline no narrower type
    while True:
        polled = consumer.poll(timeout_ms=200)
        messages = [message for part in polled.values() for message in part]
        texts = [json.loads(message.value)["text"] for message in messages]
        answers = classify(texts, batch_size=PADDED, truncation=True) if texts else []
        sent = [
            producer.send(target, json.dumps(answer).encode(), message.key)
            for message, answer in zip(messages, answers, strict=True)
        ]
        producer.flush()
        for record in sent:
            record.get()
        consumer.commit()


def main() -> None:
    bootstrap, source, target, group, folder, kind = sys.argv[1:]
    consumer = KafkaConsumer(
        source,
        bootstrap_servers=bootstrap,
        group_id=group,
        auto_offset_reset="earliest",
        enable_auto_commit=kind == "each",
    )
    producer = KafkaProducer(bootstrap_servers=bootstrap)
    classify = pipeline("text-classification", model=f"{folder}/checkpoint", device="cpu")
    {"each": each, "polls": polls}[kind](consumer, producer, target, classify)


if __name__ == "__main__":
    main()
