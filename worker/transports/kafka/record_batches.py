"""Reads the records of a batch by the rules of the brokers, whatever bytes stand there, and writes some.

Brokers check what a producer writes with Java's reader. Where a reader of ours took a number for
another than Java's does, whoever may write to a topic could move our offsets; where it refused what
Java's takes, they could stop us. So the rules are those of `DefaultRecord` and `ByteUtils` of Kafka
4.1: a varint has at most 5 bytes, a varlong 10, and bits beyond 32 or 64 are dropped.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_MORE: Final = 0x80
_VARINT: Final = (5, 0xFFFF_FFFF)
_VARLONG: Final = (10, 0xFFFF_FFFF_FFFF_FFFF)
_SIGN_OF_LONG: Final = 1 << 63
_NAMES_REMEMBERED: Final = 1024
# Longer ones are rare, unless somebody wants to fill the memory.
_NAME_REMEMBERED: Final = 128


class RecordBatchError(ValueError):
    """Bytes that are no record where one should be."""


class BatchRecord(NamedTuple):
    """A record as its batch has it; offset and timestamp count from those of the batch."""

    offset_delta: int
    timestamp_delta: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    size_in_bytes: int


class Undecodable(NamedTuple):
    """The records of a batch from an offset to its last, which cannot be read.

    The fields that all records have are named as in kafka-python's `ConsumerRecord`. The value is the
    whole batch as the broker has it.
    """

    topic: str
    partition: int
    offset: int
    last_offset: int
    value: bytes
    reason: str
    key: None = None
    headers: tuple[()] = ()
    timestamp: int = -1
    serialized_header_size: int = 0


def read_records(
    data: bytes, count: int, last_offset_delta: int, begin: int, most_header_bytes: int
) -> Iterator[BatchRecord]:
    """Yield the records of a batch that has `count` of them, but those before an offset `begin`.

    Headers that are longer than `most_header_bytes` are left out. The names of headers should be UTF-8, but brokers take any bytes: `surrogateescape` makes text of
    them, and bytes again of this.

    Raises:
        RecordBatchError: what comes next is no record, or has an offset that its batch has not.

    """
    place = 0
    lowest = 0
    for _ in range(count):
        try:
            size, place = _number(data, place, _VARINT)
            end = place + size
            if not place < end <= len(data):
                raise RecordBatchError("a record is longer than its batch")
            # Behind one byte of attributes, of which there are none yet.
            timestamp_delta, place = _number(data, place + 1, _VARLONG)
            offset_delta, place = _number(data, place, _VARINT)
            if not lowest <= offset_delta <= last_offset_delta:
                raise RecordBatchError("a record has an offset that its batch has not")
            if offset_delta >= begin:
                content = _content(data, place, end, most_header_bytes)
                yield BatchRecord(offset_delta, timestamp_delta, *content, size)
        except IndexError:
            raise RecordBatchError("a record ends before its last field") from None
        lowest = offset_delta + 1
        place = end


def encode_content(
    key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]]
) -> bytes:
    """Return the key, the value and the headers of a record as the message format has them."""
    parts = [VARINT[-1]] if key is None else [VARINT[len(key)], key]
    parts += (VARINT[-1],) if value is None else (VARINT[len(value)], value)
    parts.append(VARINT[len(headers)])
    for name, content in headers:
        parts.append(_known_name(name) if len(name) <= _NAME_REMEMBERED else _name(name))
        parts += (VARINT[-1],) if content is None else (VARINT[len(content)], content)
    return b"".join(parts)


def _name(name: str) -> bytes:
    encoded = name.encode("utf-8", "surrogateescape")
    return VARINT[len(encoded)] + encoded


_known_name = lru_cache(maxsize=_NAMES_REMEMBERED)(_name)


class _Varints(dict[int, bytes]):
    """Numbers as Protocol Buffers' sint64; those that it is created with are kept."""

    def __init__(self, numbers: Iterable[int]) -> None:
        super().__init__((number, self.__missing__(number)) for number in numbers)

    def __missing__(self, number: int) -> bytes:
        rest = (number << 1) ^ (number >> 63)
        encoded = bytearray()
        while rest >= _MORE:
            encoded.append(_MORE | (rest & ~_MORE & 0xFF))
            rest >>= 7
        encoded.append(rest)
        return bytes(encoded)


# -1 stands for the length of what is null.
VARINT: Final = _Varints(range(-1, 8192))


def wrapped(timestamp: int) -> int:
    """Return a sum of timestamps as Java has it, in 64 bits."""
    return (timestamp + _SIGN_OF_LONG) % (2 * _SIGN_OF_LONG) - _SIGN_OF_LONG


def _content(
    data: bytes, place: int, end: int, most_header_bytes: int
) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]:
    """Read the key, the value and the headers of a record."""
    key, place = _bytes(data, place, end)
    value, place = _bytes(data, place, end)
    if end - place > most_header_bytes:
        return key, value, []
    number, place = _number(data, place, _VARINT)
    if not 0 <= number <= end - place:
        raise RecordBatchError("a record has a number of headers that cannot be")
    headers = []
    for _ in range(number):
        name, place = _bytes(data, place, end)
        if name is None:
            raise RecordBatchError("a header has no name")
        content, place = _bytes(data, place, end)
        headers.append((name.decode("utf-8", "surrogateescape"), content))
    if place != end:
        raise RecordBatchError("a record is not as long as it says")
    return key, value, headers


def _bytes(data: bytes, place: int, end: int) -> tuple[bytes | None, int]:
    """Read bytes behind their length, and return the place behind them; a negative length is null."""
    length = data[place]
    if length < _MORE:  # as in `_number`; most lengths are so short that the call would cost more
        length = (length >> 1) ^ -(length & 1)
        place += 1
    else:
        length, place = _number(data, place, _VARINT)
    if length < 0:
        return None, place
    stop = place + length
    if stop > end:
        raise RecordBatchError("a field is longer than its record")
    return data[place:stop], stop


def _number(data: bytes, place: int, kind: tuple[int, int]) -> tuple[int, int]:
    """Read a signed number that has so many bytes at most, and return the place behind it."""
    byte = data[place]
    if byte < _MORE:
        return (byte >> 1) ^ -(byte & 1), place + 1
    most_bytes, mask = kind
    number = 0
    for index in range(most_bytes):
        byte = data[place + index]
        number |= (byte & ~_MORE) << 7 * index
        if byte < _MORE:
            number &= mask
            return (number >> 1) ^ -(number & 1), place + index + 1
    raise RecordBatchError("a number has too many bytes")
