"""Records that anyone may send who may write to a topic, and that stopped workers once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from tests.record_batches import GZIP, NONE, ZSTD, Raw, record_batch

if TYPE_CHECKING:
    from collections.abc import Sequence

HONEST = Raw(b'{"text": "gg"}')
MEBIBYTE = 2**20
NOT_UTF8 = b"\xff\xfe"
# A number beyond 32 or 64 bits, of which Java drops the bits in excess.
ZERO_OF_TEN_BYTES = b"\x80" * 9 + b"\x02"


LABEL, IN_THE_LETTER_BEFORE = "a label", "in the letter before"


def padded_offset(offset: int) -> bytes:
    """Return an offset below 64 in five bytes, with a bit that Java drops."""
    return bytes([offset << 1 | 0x80]) + b"\x80" * 3 + b"\x10"


def now_ms() -> int:
    return int(time.time() * 1000)


class Attack(NamedTuple):
    """A record batch, and what becomes of each record: the kind of its dead letter, or one of these."""

    records: Sequence[Raw]
    outcomes: Sequence[str]
    codec: int = NONE

    def batch(self) -> bytes:
        """Return the record batch, of now."""
        return record_batch(self.records, self.codec, now_ms())


def text_of(size: int) -> bytes:
    return b'{"text": "%s"}' % (b"a" * size)


ATTACKS = {
    "an event larger than any topic takes": Attack(
        [HONEST, Raw(text_of(3_000_000)), HONEST], [LABEL, "too-large", LABEL], GZIP
    ),
    "a time of ten bytes": Attack([Raw(HONEST.value, timestamp=ZERO_OF_TEN_BYTES)], [LABEL]),
    "a time before all times": Attack([Raw(HONEST.value, timestamp=-(2**62))], [LABEL]),
    "offsets of five bytes": Attack(
        [Raw(HONEST.value, offset=padded_offset(n)) for n in range(60)], [LABEL] * 60
    ),
    "names of headers that are no text": Attack(
        [
            HONEST,
            Raw(HONEST.value, headers=[(NOT_UTF8, b"1"), (b"", None)]),
            Raw(b"{", headers=[(NOT_UTF8, b"2")]),
        ],
        [LABEL, LABEL, "not-json"],
    ),
    "large keys": Attack([Raw(HONEST.value, bytes(900_000))] * 60, ["key-too-large"] * 60, ZSTD),
    "large headers": Attack(
        [Raw(HONEST.value, headers=[(b"a" * MEBIBYTE, b"")])] * 20
        + [Raw(HONEST.value, headers=[(b"", b"")] * 100_000)],
        ["headers-too-large"] * 21,
        ZSTD,
    ),
    "many headers that are null": Attack(
        [Raw(b"{", headers=[(b"a", None)] * 10_000)], ["not-json"], ZSTD
    ),
    "long ids": Attack(
        [Raw(b'{"id": "%s", "text": "gg"}' % (b"a" * 1_048_000))] * 20, ["id-too-long"] * 20, ZSTD
    ),
    "a bomb": Attack(
        [HONEST, Raw(bytes(100 * MEBIBYTE)), HONEST],
        [LABEL, "undecodable", IN_THE_LETTER_BEFORE],
        ZSTD,
    ),
}
