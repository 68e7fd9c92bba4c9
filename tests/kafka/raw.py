"""Record batches that a broker is given as the bytes they are, past any producer."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Self

from kafka.protocol.producer import ProduceRequest, ProduceResponse

from tests.kafka.broker import PATIENCE

if TYPE_CHECKING:
    from tests.kafka.broker import Kafka

VERSION = 9
LENGTH = struct.Struct(">i")
ALL = -1


class RawProducer:
    """Writes to a Kafka of one broker."""

    def __init__(self, kafka: Kafka) -> None:
        """Connect to the broker."""
        host, port = kafka.bootstrap.split(":")
        self._socket = socket.create_connection((host, int(port)), timeout=PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def append(self, topic: str, partition: int, batch: bytes) -> int:
        """Write a batch, and return the offset of its first record."""
        topic_data = ProduceRequest.TopicProduceData
        partition_data = topic_data.PartitionProduceData(index=partition, records=batch)
        request = ProduceRequest(
            acks=ALL,
            timeout_ms=int(PATIENCE * 1000),
            topic_data=[topic_data(name=topic, partition_data=[partition_data])],
        )
        request.API_VERSION = VERSION
        request.with_header()
        self._socket.sendall(request.encode(header=True, framed=True))
        (length,) = LENGTH.unpack(self._read(LENGTH.size))
        response = ProduceResponse.decode(self._read(length), version=VERSION, header=True)
        answer = response.responses[0].partition_responses[0]
        assert answer.error_code == 0, (answer.error_code, answer.error_message)
        base_offset: int = answer.base_offset
        return base_offset

    def _read(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            part = self._socket.recv(size - len(parts))
            assert part, "the broker has closed the connection"
            parts += part
        return bytes(parts)
