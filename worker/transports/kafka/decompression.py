"""What a compressed record batch holds, read no further than a limit.

Whoever may write to a topic decides how far a batch expands: 17 KB of zstd make half a gigabyte.
Brokers limit the size that a batch has before, so each reader must stop in time by itself.
"""

from __future__ import annotations

import zlib
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

import snappy
from lz4.frame import LZ4FrameDecompressor
from zstandard import ZstdDecompressor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# A library is asked for no more at once: it may set aside what it is asked for.
_STEP_BYTES: Final = 1 << 20
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS
_GZIP_MAGIC: Final = b"\x1f\x8b\x08"
_LENGTH: Final = Struct(">i")
# Java's snappy streams begin so; blocks follow, each behind its length. Others send one block.
_SNAPPY_MAGIC: Final = b"\x82SNAPPY\0"
_SNAPPY_HEADER_BYTES: Final = len(_SNAPPY_MAGIC) + 2 * _LENGTH.size
_VARINT_BYTES: Final = 5
_MORE: Final = 0x80


class Decompressed(NamedTuple):
    """What compressed data hold, or as much of it as there is in front of a `problem`."""

    data: bytes
    problem: str | None


def decompress(codec: int, data: bytes, limit: int) -> Decompressed:
    """Return what compressed data hold, at most `limit` bytes.

    `codec` is the number in the attributes of a record batch. Data that are longer are a problem, as
    are damaged ones and an unknown codec.
    """
    if codec not in _CODECS:
        return Decompressed(b"", f"there is no codec {codec}")
    name, parts_of = _CODECS[codec]
    parts = []
    left = limit
    problem = None
    try:
        for part in parts_of(data, limit):
            parts.append(part[:left])
            left -= len(part)
            if left < 0:
                break
    except OverflowError:
        left = -1
    except Exception:  # noqa: BLE001 - each library has errors of its own, some of which quote the data
        problem = f"its {name} data are damaged"
    if left < 0:
        problem = f"its {name} data expand to more than {limit} bytes"
    return Decompressed(b"".join(parts), problem)


def _gzip(data: bytes, limit: int) -> Iterable[bytes]:
    # As in Java, what follows the first member and is no member is of no interest.
    rest = data
    while rest is data or rest.startswith(_GZIP_MAGIC):
        member = zlib.decompressobj(_GZIP_WINDOW)
        while not member.eof:
            part = member.decompress(rest, min(limit + 1, _STEP_BYTES))
            rest = member.unconsumed_tail
            if not part and not rest and not member.eof:
                raise EOFError
            yield part
        rest = member.unused_data


def _snappy(data: bytes, limit: int) -> Iterable[bytes]:
    if not data.startswith(_SNAPPY_MAGIC):
        yield _snappy_block(data, limit)
        return
    place = _SNAPPY_HEADER_BYTES
    while place < len(data):
        if data.startswith(_SNAPPY_MAGIC, place):  # another stream behind the first
            place += _SNAPPY_HEADER_BYTES
            continue
        (length,) = _LENGTH.unpack_from(data, place)
        place += _LENGTH.size
        if not 0 < length <= len(data) - place:
            raise EOFError
        yield _snappy_block(data[place : place + length], limit)
        place += length


def _snappy_block(block: bytes, limit: int) -> bytes:
    """Decompress a block, which begins with its length.

    Raises:
        OverflowError: that is more than the limit.

    """
    length = 0
    for index, byte in enumerate(block[:_VARINT_BYTES]):
        length |= (byte & ~_MORE) << 7 * index
        if byte < _MORE:
            break
    if length > limit:
        raise OverflowError
    return bytes(snappy.decompress(block))


def _lz4(data: bytes, limit: int) -> Iterable[bytes]:
    frame = LZ4FrameDecompressor()
    rest = data
    while not frame.eof:
        part = frame.decompress(rest, max_length=min(limit + 1, _STEP_BYTES))
        rest = b""
        if not part and frame.needs_input and not frame.eof:
            raise EOFError
        yield part


def _zstd(data: bytes, limit: int) -> Iterable[bytes]:
    with ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
        while part := reader.read(min(limit + 1, _STEP_BYTES)):
            yield part


_CODECS: Final[dict[int, tuple[str, Callable[[bytes, int], Iterable[bytes]]]]] = {
    1: ("gzip", _gzip),
    2: ("snappy", _snappy),
    3: ("lz4", _lz4),
    4: ("zstd", _zstd),
}
