"""How large a dead letter can become, so that its topic can be given room for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from worker.events.records import ErrorKind
from worker.transports.kafka import records

if TYPE_CHECKING:
    from worker.settings.schema import KafkaSettings

# The setting of a topic that limits its record batches.
MAX_MESSAGE_BYTES: Final = "max.message.bytes"

# A reason is a sentence of ours, which holds the name of a field at most.
_REASON_BYTES: Final = 200
# By so much the lengths and counts may grow, and the client's own estimate is too high.
_LENGTHS_BYTES: Final = 32
_HEADER_LENGTHS_BYTES: Final = 4
_HIGHEST_PARTITION: Final = 2**31 - 1
_HIGHEST: Final = 2**63 - 1


def dead_letter_bytes(event: int, kafka: KafkaSettings) -> int:
    """Return the bytes that the dead letter of an event has at most.

    `event` is the size of the event in bytes; a dead letter is the event and our own headers.
    """
    headers = {
        records.TOPIC: max(kafka.input_topics, key=len),
        records.PARTITION: str(_HIGHEST_PARTITION),
        records.OFFSET: str(_HIGHEST),
        records.TIMESTAMP: str(_HIGHEST),
        records.KIND: max(ErrorKind, key=len),
        records.REASON: " " * _REASON_BYTES,
        records.NULLS: '["value"]',
    }
    return (
        event
        + _LENGTHS_BYTES
        + sum(len(name) + len(value) + _HEADER_LENGTHS_BYTES for name, value in headers.items())
    )
