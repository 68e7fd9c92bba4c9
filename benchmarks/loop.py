"""What a record costs at least: a plain loop that consumes and produces with kafka-python.

Takes the worker's settings, reads the input topics, and writes each record as it is to the output
topic: acknowledged, then committed, a poll at a time. `benchmarks.stream` and `benchmarks.latency`
compare with it.
"""

from __future__ import annotations

import sys

from worker.settings.loading import load_settings
from worker.transports.kafka.clients import new_consumer, new_producer


def main() -> int:
    settings = load_settings(None, {}).kafka
    consumer = new_consumer(settings, auto_offset_reset="earliest")
    consumer.subscribe(list(settings.input_topics))
    producer = new_producer(settings)
    while True:
        polled = consumer.poll(timeout_ms=200)
        for records in polled.values():
            for record in records:
                producer.send(
                    settings.output_topic,
                    record.value,
                    record.key,
                    timestamp_ms=record.timestamp,
                )
        if polled:
            producer.flush()
            consumer.commit()


if __name__ == "__main__":
    sys.exit(main())
