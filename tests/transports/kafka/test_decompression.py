"""Compressed data are read up to a limit, and as far as they are whole."""

from __future__ import annotations

import gzip
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.record_batches import COMPRESS, GZIP, NONE, SNAPPY, ZSTD
from worker.transports.kafka.decompression import decompress

CODECS = sorted(COMPRESS.keys() - {NONE})
TOO_MUCH = "data expand to more than"

codecs = st.sampled_from(CODECS)
contents = st.binary() | st.builds(bytes.__mul__, st.binary(max_size=3), st.integers(0, 3_000_000))


@settings(max_examples=50)
@given(codec=codecs, content=contents)
def test_what_fits_is_returned_and_of_more_the_beginning(codec: int, content: bytes) -> None:
    compressed = COMPRESS[codec](content)
    assert decompress(codec, compressed, len(content)) == (content, None)
    if content:
        data, problem = decompress(codec, compressed, len(content) - 1)
        assert content[:-1].startswith(data)
        assert TOO_MUCH in str(problem)


@settings(max_examples=50)
@given(codec=codecs, content=contents, data=st.data())
def test_data_that_end_early_or_are_changed_are_no_error_of_a_library(
    codec: int, content: bytes, data: st.DataObject
) -> None:
    compressed = bytearray(COMPRESS[codec](content))
    place = data.draw(st.integers(0, len(compressed) - 1))
    if data.draw(st.booleans()):
        compressed[place] ^= data.draw(st.integers(1, 255))
    else:
        del compressed[place:]
    read, problem = decompress(codec, bytes(compressed), len(content))
    assert len(read) <= len(content)
    assert problem is None or "damaged" in problem or TOO_MUCH in problem


@given(codec=codecs, data=st.binary())
def test_any_bytes_are_read_within_the_limit(codec: int, data: bytes) -> None:
    assert len(decompress(codec, data, 100).data) <= 100


@pytest.mark.parametrize("codec", [NONE, 5, 7])
def test_an_unknown_codec_is_named(codec: int) -> None:
    assert decompress(codec, b"data", 100) == (b"", f"there is no codec {codec}")


def test_a_bomb_is_read_no_further_than_the_limit() -> None:
    bomb = COMPRESS[ZSTD](bytes(2**29))
    assert len(bomb) < 20_000
    data, problem = decompress(ZSTD, bomb, 2**20)
    assert data == bytes(2**20)
    assert problem == f"its zstd data expand to more than {2**20} bytes"


def test_members_of_gzip_follow_each_other_and_what_is_none_ends_them() -> None:
    members = gzip.compress(b"one ") + gzip.compress(b"two")
    assert decompress(GZIP, members + b"anything", 100) == (b"one two", None)


def test_blocks_of_snappy_may_come_in_a_stream_alone_or_in_streams() -> None:
    stream = COMPRESS[SNAPPY](b"one ")
    assert decompress(SNAPPY, stream + COMPRESS[SNAPPY](b"two"), 100) == (b"one two", None)
    block = stream[20:]
    assert decompress(SNAPPY, block, 100) == (b"one ", None)


@pytest.mark.parametrize("length", [0, -1, 1000])
def test_a_block_of_snappy_whose_length_is_wrong_is_damage(length: int) -> None:
    stream = bytearray(COMPRESS[SNAPPY](b"content"))
    stream[16:20] = struct.pack(">i", length)
    assert decompress(SNAPPY, bytes(stream), 100) == (b"", "its snappy data are damaged")
