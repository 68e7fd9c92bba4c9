"""The file transport holds the contract, and its outputs survive what may happen to them."""

from __future__ import annotations

import json
import resource
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest

from tests.transports.contract import (
    RECORDS_A_PARTITION,
    Harness,
    Name,
    TransportContract,
    drain,
    outcomes_of,
    value_of,
)
from worker.errors import ConfigurationError, WorkerError
from worker.events.decoding import Fields
from worker.events.encoding import LabelEncoder
from worker.transports.files import transport
from worker.transports.files.reading import Format
from worker.transports.files.transport import FileTransport, InputSource
from worker.transports.files.writing import CheckpointedOutputs, RunIdentity, StreamedOutputs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from worker.transports.base import Transport

ENCODER = LabelEncoder("calm", "0123")


class FileHarness(Harness):
    """Each file is a partition."""

    def __init__(self, folder: Path, partitions: int = 3) -> None:
        self.partitions = partitions
        self.output, self.letters = folder / "out.jsonl", folder / "dead.jsonl"
        self.sources = []
        for partition in range(partitions):
            path = folder / f"in-{partition}.jsonl"
            lines = [value_of(partition, number) for number in range(RECORDS_A_PARTITION)]
            path.write_bytes(b"\n".join(lines) + b"\n")
            self.sources.append(InputSource(str(path), path.name, Format.JSONL))
        self._outputs: dict[FileTransport, CheckpointedOutputs] = {}

    def consumer(self) -> FileTransport:
        outputs = open_outputs(self.output, self.letters)
        transport = FileTransport(self.sources, Fields(), 1000, outputs, ENCODER)
        self._outputs[transport] = outputs
        return transport

    def crash(self, consumer: Transport[Any]) -> None:
        assert isinstance(consumer, FileTransport)
        self._outputs[consumer].close()

    def finish(self, consumer: FileTransport) -> None:
        self._outputs[consumer].finish()
        self.close()

    def close(self) -> None:
        for outputs in self._outputs.values():
            outputs.close()

    def rebalance(self) -> None:
        """Do nothing: files are read by one process."""

    def fail_next_complete(self) -> None:
        size = self.output.stat().st_size
        _limit_file_size(size + 10)

    def published(self) -> list[Name]:
        names = [json.loads(line)["id"] for line in _lines(self.output)]
        names += [json.loads(line)["value"].split('"')[3] for line in _lines(self.letters)]
        return [(int(p), int(n)) for p, n in (name.split("/") for name in names)]


def open_outputs(output: Path, letters: Path, model: str = "0123") -> CheckpointedOutputs:
    run = RunIdentity(inputs="the same", model=model, options={})
    return CheckpointedOutputs(output, letters, run, overwrite=False)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _limit_file_size(size: int) -> None:
    """Make the kernel refuse to let any file grow beyond a size, as a full disk would."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


class TestFileTransport(TransportContract):
    @pytest.fixture
    def harness(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileHarness]:
        monkeypatch.setattr(transport, "CHUNK_RECORDS", 100)
        harness = FileHarness(tmp_path)
        complete = FileTransport.complete

        def once_limited(self: FileTransport, *args: object) -> None:
            try:
                complete(self, *args)  # type: ignore[arg-type]
            finally:
                _limit_file_size(resource.RLIM_INFINITY)

        monkeypatch.setattr(FileTransport, "complete", once_limited)
        yield harness
        harness.close()
        _limit_file_size(resource.RLIM_INFINITY)


def test_bytes_beyond_the_checkpoint_are_cut_off(tmp_path: Path) -> None:
    harness = FileHarness(tmp_path)
    consumer = harness.consumer()
    chunk = next(consumer.chunks())
    consumer.complete(chunk, outcomes_of(chunk))
    harness.crash(consumer)
    expected = harness.output.read_bytes(), harness.letters.read_bytes()
    for path in (harness.output, harness.letters):
        with path.open("ab") as file:
            file.write(b'{"half a li')
    harness.consumer()
    harness.close()
    assert (harness.output.read_bytes(), harness.letters.read_bytes()) == expected


@pytest.mark.parametrize("which", ["output", "letters"])
@pytest.mark.parametrize("damage", ["cut", "changed", "removed"])
def test_an_output_that_does_not_fit_the_checkpoint_is_an_error(
    tmp_path: Path, which: str, damage: str
) -> None:
    harness = FileHarness(tmp_path)
    consumer = harness.consumer()
    drain(consumer)
    harness.crash(consumer)
    path: Path = getattr(harness, which)
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(content[:-5] if damage == "cut" else b"#" + content[1:])
    with pytest.raises(ConfigurationError, match=r"not what the checkpoint .* --overwrite"):
        harness.consumer()


def test_two_runs_cannot_write_one_file(tmp_path: Path) -> None:
    harness = FileHarness(tmp_path)
    harness.consumer()
    with pytest.raises(WorkerError, match="another run is writing"):
        harness.consumer()
    harness.close()


def test_another_model_is_an_error(tmp_path: Path) -> None:
    open_outputs(tmp_path / "out", tmp_path / "dead").close()
    with pytest.raises(ConfigurationError, match="its model or thresholds are different"):
        open_outputs(tmp_path / "out", tmp_path / "dead", model="4567")


@pytest.mark.parametrize("content", ["", "{", '{"version": 2}'])
def test_a_checkpoint_that_is_none_is_an_error(tmp_path: Path, content: str) -> None:
    open_outputs(tmp_path / "out", tmp_path / "dead").close()
    (tmp_path / "out.checkpoint").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigurationError, match="is not a checkpoint that this worker can read"):
        open_outputs(tmp_path / "out", tmp_path / "dead")


def test_a_file_of_someone_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="exists, and does not belong to a run"):
        open_outputs(tmp_path / "out", tmp_path / "dead")
    assert (tmp_path / "out").read_text(encoding="utf-8") == "precious"


def test_a_run_killed_before_its_first_checkpoint_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    open_outputs(tmp_path / "out", tmp_path / "dead").close()


def test_dead_letters_of_someone_else_are_not_touched_when_the_first_one_comes(
    tmp_path: Path,
) -> None:
    harness = FileHarness(tmp_path)
    consumer = harness.consumer()
    harness.letters.write_text("precious", encoding="utf-8")
    chunk = next(consumer.chunks())
    with pytest.raises(ConfigurationError, match="exists, and does not belong to a run"):
        consumer.complete(chunk, outcomes_of(chunk))
    harness.close()
    harness.consumer()
    harness.close()
    assert harness.letters.read_text(encoding="utf-8") == "precious"


def test_a_finished_run_leaves_what_others_added(tmp_path: Path) -> None:
    harness = FileHarness(tmp_path)
    consumer = harness.consumer()
    drain(consumer)
    harness.finish(consumer)
    with harness.letters.open("ab") as file:
        file.write(b"of another run\n")
    content = harness.letters.read_bytes()
    harness.consumer()
    harness.close()
    assert harness.letters.read_bytes() == content


def test_a_run_without_checkpoint_cannot_write_over_one_that_has(tmp_path: Path) -> None:
    harness = FileHarness(tmp_path)
    harness.consumer()
    with pytest.raises(WorkerError, match="another run is writing"):
        StreamedOutputs(harness.output, harness.letters, overwrite=True)
    harness.close()
    StreamedOutputs(harness.output, harness.letters, overwrite=True).close()
    assert not (tmp_path / "out.jsonl.checkpoint").exists()


@pytest.mark.parametrize("first", [b"", b'{"text": "gg"}\n'])
def test_a_file_of_nothing_but_blank_lines_can_be_left(tmp_path: Path, first: bytes) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(first + b"\n" * 50_000)
    outputs = open_outputs(tmp_path / "out.jsonl", tmp_path / "dead.jsonl")
    source = InputSource(str(path), path.name, Format.JSONL)
    transport = FileTransport([source], Fields(), 1000, outputs, ENCODER)
    chunks = []
    for chunk in islice(transport.chunks(), 5):
        transport.complete(chunk, [])
        chunks.append(chunk)
    assert [len(chunk.items) for chunk in chunks] == [bool(first), 0, 0, 0, 0]
    assert {chunk.position.input for chunk in chunks} == {0}
    outputs.close()
