"""Batches that the client cannot decode: the worker stops in front of them and says where."""

from __future__ import annotations

import shlex
import struct
import time
from typing import TYPE_CHECKING

import pytest
from kafka.record.default_records import DefaultRecordBase
from kafka.record.util import calc_crc32c

from tests.kafka.broker import wait_until
from tests.kafka.raw import RawProducer
from tests.kafka.stage import Stage, WorkerProcess, header, place_of
from tests.record_batches import NONE, ZSTD, Raw, record_batch
from worker.cli.entry import main

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.kafka.broker import Node

# Where the broker keeps, in a batch, its offset and how much follows these two.
LENGTHS = struct.Struct(">qi")


# How far a record batch may expand, and what expands further.
MOST_BYTES = 2**20
RECORDS_BEGIN = DefaultRecordBase.HEADER_STRUCT.size
BAD = Raw(bytes(MOST_BYTES))


@pytest.fixture(autouse=True)
def _little_room(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.settings["KAFKA__MAX_BATCH_BYTES"] = str(MOST_BYTES)
    monkeypatch.setenv("WORKER_KAFKA__MAX_BATCH_BYTES", str(MOST_BYTES))


def produce(stage: Stage, *batches: Sequence[str], partition: int = 0) -> None:
    """Produce each list as one record batch, in which nothing from a "bad" record on can be decoded."""
    now = int(time.time() * 1000)
    with RawProducer(stage.kafka) as producer:
        for batch in batches:
            records = [
                BAD if text == "bad" else Raw(b'{"text": "%s"}' % text.encode()) for text in batch
            ]
            codec = ZSTD if "bad" in batch else NONE
            producer.append(stage.input, partition, record_batch(records, codec, now))


def damage(node: Node, topic: str, offset: int, change: Callable[[bytearray], None]) -> None:
    """Change a batch where the broker has it on its disk, which it sends on as it is."""
    path = node.folder / "data" / f"{topic}-0" / "00000000000000000000.log"
    content = path.read_bytes()
    begin = 0
    while True:
        first, length = LENGTHS.unpack_from(content, begin)
        end = begin + LENGTHS.size + length
        if first == offset:
            break
        begin = end
    batch = bytearray(content[begin:end])
    change(batch)
    with path.open("r+b") as file:
        file.seek(begin)
        file.write(batch)


def break_the_checksum(batch: bytearray) -> None:
    batch[-1] ^= 1


def name_an_unknown_codec(batch: bytearray) -> None:
    batch[DefaultRecordBase.ATTRIBUTES_OFFSET + 1] |= DefaultRecordBase.CODEC_MASK
    _sign(batch)


def scramble_the_records(batch: bytearray) -> None:
    begin = DefaultRecordBase.HEADER_STRUCT.size
    batch[begin:] = b"\xa5" * (len(batch) - begin)
    _sign(batch)


def claim_a_compression(batch: bytearray) -> None:
    batch[DefaultRecordBase.ATTRIBUTES_OFFSET + 1] |= DefaultRecordBase.CODEC_GZIP
    _sign(batch)


def empty_the_records(batch: bytearray) -> None:
    """Say that there are records, of no length."""
    begin = DefaultRecordBase.HEADER_STRUCT.size
    batch[begin:] = bytes(len(batch) - begin)
    _sign(batch)


def _sign(batch: bytearray) -> None:
    checksum = calc_crc32c(memoryview(batch)[DefaultRecordBase.ATTRIBUTES_OFFSET :])
    struct.pack_into(">I", batch, DefaultRecordBase.CRC_OFFSET, checksum)


guarantees = pytest.mark.parametrize("guarantee", ["at-least-once", "exactly-once"])


def stopped_in_front_of(worker: WorkerProcess, topic: str, offset: int) -> list[str]:
    """Wait until a worker has ended; returns the command that it names."""
    assert worker.wait() == 1, worker.output
    last = worker.output.splitlines()[-1]
    what = f"the batch at offset {offset} of partition 0 of {topic} cannot be decoded"
    assert last.startswith(f"worker: {what}: "), worker.output
    return shlex.split(last.partition(" run: worker ")[2])


def offsets(stage: Stage, partition: int = 0) -> list[int]:
    """Return the offsets of the events of a partition that have labels."""
    return sorted(offset for number, offset in map(place_of, stage.labels()) if number == partition)


def wait_until_committed(stage: Stage, offset: int) -> None:
    """Wait until a partition is done; what it holds cannot be read by the tests either."""
    wait_until(
        lambda: stage.kafka.committed(stage.group, stage.input).get(0) == offset,
        f"a position at {offset}",
    )


def skip(stage: Stage, command: Sequence[str]) -> None:
    """Run the command that a worker has named, with its settings."""
    flags = {
        "--brokers": "BROKERS",
        "--input-topics": "INPUT_TOPICS",
        "--dead-letter-topic": "DEAD_LETTER_TOPIC",
        "--group": "GROUP",
    }
    settings = [
        word for flag, name in flags.items() for word in (flag, stage.settings[f"KAFKA__{name}"])
    ]
    assert main([*command, "--yes", *settings]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (break_the_checksum, "its checksum is wrong"),
        (name_an_unknown_codec, "there is no codec 7"),
        (claim_a_compression, "its gzip data are damaged"),
        (scramble_the_records, "a number has too many bytes"),
        (empty_the_records, "a record is longer than its batch"),
    ],
)
def test_a_damaged_batch_stops_the_worker_in_front_of_it_until_it_is_skipped(
    stage: Stage, kafka_node: Node, change: Callable[[bytearray], None], reason: str
) -> None:
    produce(stage, ["gg"] * 10, ["lost"] * 3, ["wp"] * 5)
    damage(kafka_node, stage.input, 10, change)
    for _ in range(2):
        command = stopped_in_front_of(stage.worker(), stage.input, 10)
        assert offsets(stage) == list(range(10))
        assert stage.kafka.committed(stage.group, stage.input)[0] == 10
    skip(stage, command)
    worker = stage.worker()
    wait_until_committed(stage, 18)
    assert worker.stop() == 0
    assert offsets(stage) == [*range(10), *range(13, 18)]
    (letter,) = stage.dead_letters()
    assert header(letter, "worker-topic") == stage.input
    assert (place_of(letter), header(letter, "worker-kind")) == ((0, 10), "undecodable")
    assert header(letter, "worker-last-offset") == "12"
    assert header(letter, "worker-reason") == reason


@guarantees
def test_a_batch_that_expands_too_far_stops_the_worker_in_front_of_what_cannot_be_read(
    stage: Stage, guarantee: str
) -> None:
    produce(stage, ["gg"] * 10, ["gg", "gg", "bad", "lost"], ["wp"] * 5)
    for _ in range(2):
        worker = stage.worker(KAFKA__GUARANTEE=guarantee)
        command = stopped_in_front_of(worker, stage.input, 12)
        assert offsets(stage) == list(range(12))
        assert stage.kafka.committed(stage.group, stage.input)[0] == 12
    skip(stage, command)
    stage.worker(KAFKA__GUARANTEE=guarantee)
    wait_until_committed(stage, 19)
    assert offsets(stage) == [*range(12), *range(14, 19)]
    (letter,) = stage.dead_letters()
    assert (place_of(letter), header(letter, "worker-kind")) == ((0, 12), "undecodable")


@guarantees
def test_where_it_is_asked_to_a_worker_goes_past_what_cannot_be_decoded(
    stage: Stage, kafka_node: Node, guarantee: str
) -> None:
    produce(stage, ["gg"] * 3, ["lost"] * 2, ["gg", "bad", "lost"], ["wp"] * 2)
    produce(stage, ["gg"] * 4, partition=1)
    damage(kafka_node, stage.input, 3, break_the_checksum)
    worker = stage.worker(KAFKA__GUARANTEE=guarantee, KAFKA__UNDECODABLE="dead-letter")
    wait_until_committed(stage, 10)
    assert worker.stop() == 0
    assert offsets(stage) == [0, 1, 2, 5, 8, 9]
    assert offsets(stage, 1) == [0, 1, 2, 3]
    damaged, bomb = stage.dead_letters()
    assert [(place_of(each), header(each, "worker-last-offset")) for each in (damaged, bomb)] == [
        ((0, 3), "4"),
        ((0, 6), "7"),
    ]
    assert header(damaged, "worker-reason") == "its checksum is wrong"
    # The bytes of the whole batch, in which the broker has written where it is.
    sent = record_batch([Raw(b'{"text": "gg"}'), BAD, Raw(b'{"text": "lost"}')], ZSTD)
    assert bomb.value[RECORDS_BEGIN:] == sent[RECORDS_BEGIN:]


def test_a_bad_record_at_the_very_beginning_stops_the_worker_with_nothing_done(
    stage: Stage,
) -> None:
    produce(stage, ["bad", "lost"])
    command = stopped_in_front_of(stage.worker(), stage.input, 0)
    skip(stage, command)
    produce(stage, ["wp"])
    stage.worker()
    wait_until_committed(stage, 3)
    assert offsets(stage) == [2]


def test_where_records_come_one_by_one_all_before_the_bad_one_are_labelled(stage: Stage) -> None:
    produce(stage, ["gg"] * 5, ["gg", "bad"])
    worker = stage.worker(KAFKA__CHUNK_RECORDS="1")
    stopped_in_front_of(worker, stage.input, 6)
    assert offsets(stage) == list(range(6))
    assert stage.kafka.committed(stage.group, stage.input)[0] == 6


def test_each_worker_of_a_group_stops_in_front_of_it(stage: Stage) -> None:
    produce(stage, ["gg"] * 3, ["bad"])
    produce(stage, ["gg"] * 3, partition=1)
    workers = [stage.worker() for _ in range(2)]
    for worker in workers:
        stopped_in_front_of(worker, stage.input, 3)
    assert offsets(stage) == list(range(3))
