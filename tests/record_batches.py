"""Record batches as the bytes that they are, with whatever a producer can put there."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import zstandard
from kafka.codec import gzip_encode, lz4_encode, snappy_encode
from kafka.record.util import calc_crc32c

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)
COMPRESS: Final[dict[int, Callable[[bytes], bytes]]] = {
    NONE: bytes,
    GZIP: gzip_encode,
    SNAPPY: snappy_encode,
    LZ4: lz4_encode,
    ZSTD: lambda data: zstandard.ZstdCompressor().compress(data),
}
LOG_APPEND_TIME: Final = 8
MAGIC: Final = 2
# Base offset, length, leader epoch, format, checksum; then what the checksum is of: attributes, last
# offset, first and latest time, the producer's id, epoch and number, and the number of records.
BEFORE_CHECKSUM: Final = struct.Struct(">qiibI")
AFTER_CHECKSUM: Final = struct.Struct(">hiqqqhii")
LENGTH_COUNTS_FROM: Final = struct.calcsize(">qi")


def varint(number: int, at_least: int = 1) -> bytes:
    """Return a number as the format has it, in more bytes than it needs if asked to."""
    rest = (number << 1) ^ (number >> 63)
    encoded = bytearray()
    while rest > 0x7F or len(encoded) < at_least - 1:
        encoded.append(0x80 | (rest & 0x7F))
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)


def nullable(content: bytes | None) -> bytes:
    return varint(-1) if content is None else varint(len(content)) + content


@dataclass(frozen=True)
class Raw:
    """A record; deltas may be given as the bytes to write."""

    value: bytes | None = b""
    key: bytes | None = None
    headers: Sequence[tuple[bytes | None, bytes | None]] = ()
    timestamp: int | bytes = 0
    offset: int | bytes | None = None
    header_count: int | None = None
    attributes: bytes = field(default=b"\0")

    def encode(self, index: int) -> bytes:
        """Return the record as the one at an index of its batch."""
        offset = index if self.offset is None else self.offset
        body = self.attributes
        body += self.timestamp if isinstance(self.timestamp, bytes) else varint(self.timestamp)
        body += offset if isinstance(offset, bytes) else varint(offset)
        body += nullable(self.key) + nullable(self.value)
        body += varint(len(self.headers) if self.header_count is None else self.header_count)
        for name, content in self.headers:
            body += nullable(name) + nullable(content)
        return varint(len(body)) + body


def record_batch(  # noqa: PLR0913 - the fields of a batch
    records: Sequence[Raw | bytes],
    codec: int = NONE,
    timestamp: int = 1_700_000_000_000,
    *,
    attributes: int = 0,
    count: int | None = None,
    last_offset: int | None = None,
    base_offset: int = 0,
) -> bytes:
    """Return a record batch with its checksum; records may be given as bytes."""
    content = b"".join(
        record if isinstance(record, bytes) else record.encode(index)
        for index, record in enumerate(records)
    )
    last = len(records) - 1 if last_offset is None else last_offset
    number = len(records) if count is None else count
    rest = AFTER_CHECKSUM.pack(
        attributes | codec, last, timestamp, timestamp, -1, -1, -1, number
    ) + COMPRESS.get(codec, bytes)(content)
    length = BEFORE_CHECKSUM.size + len(rest) - LENGTH_COUNTS_FROM
    return BEFORE_CHECKSUM.pack(base_offset, length, 0, MAGIC, calc_crc32c(rest)) + rest
