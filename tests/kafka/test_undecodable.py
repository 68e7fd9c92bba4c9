"""Batches that the client cannot decode: the worker stops in front of them and says where."""

from __future__ import annotations

import shlex
import struct
from contextlib import closing
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
from kafka import KafkaProducer, TopicPartition
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBase
from kafka.record.util import calc_crc32c

from tests.kafka.broker import PATIENCE, wait_until
from tests.kafka.stage import Stage, WorkerProcess, header, place_of
from worker.cli.entry import main
from worker.settings.schema import KafkaSettings
from worker.transports.kafka.clients import new_consumer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.kafka.broker import Node

# Where the broker keeps, in a batch, its offset and how much follows these two.
LENGTHS = struct.Struct(">qi")


class NotUtf8(str):
    """The name of a header, which brokers take as any bytes."""

    __slots__ = ()

    def encode(self, *_: Any) -> bytes:
        return b"\xff"


def produce(stage: Stage, *batches: Sequence[str], partition: int = 0) -> None:
    """Produce each batch as one; a text that is "bad" gets a header that is not UTF-8."""
    # Only a flush ends a batch.
    times = {"linger_ms": int(PATIENCE * 1000), "delivery_timeout_ms": int(PATIENCE * 4000)}
    with closing(KafkaProducer(**stage.kafka.settings, **times)) as producer:
        for batch in batches:
            sent = [
                producer.send(
                    stage.input,
                    b'{"text": "%s"}' % text.encode(),
                    headers=[(NotUtf8(), b"")] if text == "bad" else [],
                    partition=partition,
                )
                for text in batch
            ]
            producer.flush(PATIENCE)
            assert all(future.succeeded() for future in sent)


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


def stopped_in_front_of(worker: WorkerProcess, topic: str, offset: int) -> list[str]:
    """Wait until a worker has ended; returns the command that it names."""
    assert worker.wait() == 1, worker.output
    last = worker.output.splitlines()[-1]
    what = f"the batch at offset {offset} of partition 0 of {topic} cannot be decoded"
    assert last.startswith(f"worker: {what}; "), worker.output
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
    "change",
    [
        break_the_checksum,
        name_an_unknown_codec,
        claim_a_compression,
        scramble_the_records,
        empty_the_records,
    ],
)
def test_a_damaged_batch_stops_the_worker_in_front_of_it_until_it_is_skipped(
    stage: Stage, kafka_node: Node, change: Callable[[bytearray], None]
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
    assert "offsets 10 to 12" in header(letter, "worker-reason")


@pytest.mark.parametrize("guarantee", ["at-least-once", "exactly-once"])
def test_a_header_that_is_not_utf_8_stops_the_worker_in_front_of_its_record(
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


def test_a_client_that_has_met_it_says_so_again_and_again(stage: Stage) -> None:
    produce(stage, ["gg"] * 3, ["bad"])
    partition = TopicPartition(stage.input, 0)
    settings = KafkaSettings(brokers=(stage.kafka.bootstrap,), group=stage.group)
    records: list[Any] = []
    raised: list[bool] = []

    def read() -> None:
        with closing(new_consumer(settings, group_id=None)) as consumer:
            consumer.assign([partition])
            consumer.seek_to_beginning()
            while len(records) < 3:
                records.extend(consumer.poll(timeout_ms=100).get(partition, []))
            # What is raised while nothing may come is not heard of.
            consumer.pause(partition)
            assert consumer.poll(timeout_ms=100) == {}
            consumer.resume(partition)
            for _ in range(3):
                with pytest.raises(CorruptRecordError):
                    consumer.poll(timeout_ms=100)
                raised.append(True)

    # A poll that never returns must not be waited for.
    reader = Thread(target=read, daemon=True)
    reader.start()
    reader.join(PATIENCE)
    assert [record.offset for record in records] == [0, 1, 2]
    assert len(raised) == 3
