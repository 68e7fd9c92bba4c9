"""Texts to labels by every engine, round by round in turn, each in a process of its own.

Each has the same core to itself while it works: the others wait for their next command.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from benchmarks.peers.environments import NotMeasuredError, end_of, python_of, start

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

# How many messages are at hand at a time; how many are labelled in a round.
MESSAGES = {1: 256, 32: 1024, 2048: 2048}
DISTINCT = {
    at_hand: {"texts": "distinct", "at_hand": at_hand, "number": number}
    for at_hand, number in MESSAGES.items()
}
# Repeats come over a longer time; the worker cuts them into chunks of 2,048 by itself.
STREAM = 20_000
REPEATS = {2048: {"texts": "stream", "at_hand": STREAM, "number": STREAM}}
COMPARED = 256


@dataclass(frozen=True)
class Peer:
    """An engine: its name, its module and kind of model, its environment, and what it is asked."""

    name: str
    module: str
    kind: str
    requirements: str | None
    commands: Mapping[int, Mapping[str, object]] = field(default_factory=lambda: DISTINCT)


FP32 = "transformers, fp32"
OURS = "this worker, nothing remembered"
PEERS = (
    Peer(FP32, "transformers_pipeline", "fp32", "torch"),
    Peer("transformers, bf16", "transformers_pipeline", "bf16", "torch"),
    Peer("transformers, torch's dynamic int8", "transformers_pipeline", "int8", "torch"),
    Peer("onnxruntime, fp32", "stock_onnxruntime", "plain", "onnxruntime"),
    Peer("onnxruntime, dynamic int8", "stock_onnxruntime", "quantized", "onnxruntime"),
    Peer("OpenVINO, its own precision", "openvino_runtime", "own", "openvino"),
    Peer("OpenVINO, int8 by nncf", "openvino_runtime", "int8", "openvino"),
    Peer("CTranslate2, int8", "ctranslate2_encoder", "int8", "torch"),
    Peer(OURS, "ours", "nothing", None),
    Peer("this worker, repeats remembered", "ours", "repeats", None, REPEATS),
)


class Labelled(NamedTuple):
    """So many messages, what they took, and how long of it the peer had its core."""

    messages: int
    seconds: float
    cpu: float

    @property
    def speed(self) -> float:
        return self.messages / self.seconds


class PeerProcess:
    """A peer that has loaded its model and waits for commands."""

    def __init__(self, peer: Peer, folder: Path, core: int) -> None:
        """Start the process and wait until it has loaded.

        Raises:
            NotMeasuredError: its environment cannot be made, or it ends.

        """
        self.peer = peer
        self._log = folder / f"{peer.module}-{peer.kind}.log"
        python, module = python_of(peer.requirements), f"benchmarks.peers.{peer.module}"
        command = (str(python), "-m", module, str(folder), peer.kind)
        with self._log.open("wb") as log:
            self._process = start(
                command, core=core, folder=folder, stdout=subprocess.PIPE, log=log
            )
        self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, command: Mapping[str, object]) -> dict[str, Any]:
        """Give a command and wait for the answer.

        Raises:
            NotMeasuredError: the process has ended.

        """
        assert self._process.stdin  # noqa: S101 - it is a pipe
        try:
            print(json.dumps(command), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise end_of(self._log) from None
        return self._answer()

    def label(self, at_hand: int) -> Labelled:
        """Let it label where so many messages are at hand."""
        return Labelled(**self.ask(self.peer.commands[at_hand]))

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout  # noqa: S101 - it is a pipe
        line = self._process.stdout.readline()
        if not line:
            raise end_of(self._log)
        answer: dict[str, Any] = json.loads(line)
        return answer


@dataclass
class Engines:
    """What was measured of each peer, by its name.

    `labelled` is by how many messages were at hand, one for each round; `alone` and `batched` are
    logits of the same texts; `missed` says why some were not measured.
    """

    labelled: dict[str, dict[int, list[Labelled]]] = field(default_factory=dict)
    alone: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    batched: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    missed: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def unless_it_ends(self, peer: Peer) -> Iterator[None]:
        """Go on without a peer that fails."""
        try:
            yield
        except NotMeasuredError as reason:
            self.missed[peer.name] = str(reason)
            self.labelled.pop(peer.name, None)

    def compare(self, process: PeerProcess) -> None:
        """Keep what a peer makes of the same texts alone and in batches."""
        logits = process.ask({"logits": COMPARED})
        self.alone[process.peer.name] = np.array(logits["alone"])
        self.batched[process.peer.name] = np.array(logits["batched"])

    def turn(self, running: Sequence[PeerProcess], *, counts: bool) -> None:
        """Let each peer label with as many messages at hand as the others have."""
        for at_hand in MESSAGES:
            for process in running:
                peer = process.peer
                if at_hand in peer.commands and peer.name not in self.missed:
                    with self.unless_it_ends(peer):
                        labelled = process.label(at_hand)
                        if counts:
                            mine = self.labelled.setdefault(peer.name, defaultdict(list))
                            mine[at_hand].append(labelled)

    def speed(self, name: str, at_hand: int) -> float:
        """Return the messages a second, the median over the rounds."""
        return statistics.median(each.speed for each in self.labelled[name][at_hand])

    def ours_faster(self, name: str, at_hand: int) -> float:
        """Return how many times as fast this worker is, the median over the rounds."""
        pairs = zip(self.labelled[OURS][at_hand], self.labelled[name][at_hand], strict=True)
        return statistics.median(ours.speed / theirs.speed for ours, theirs in pairs)

    def taken_away(self) -> float:
        """Return the share of the time in which other processes had the core."""
        every = [e for mine in self.labelled.values() for part in mine.values() for e in part]
        return 1 - sum(e.cpu for e in every) / sum(e.seconds for e in every) if every else 0.0

    def changed_by_batch(self, name: str) -> float:
        """Return the largest difference alone and in a batch, over the largest logit."""
        return _difference(self.alone[name], self.batched[name])

    def off_fp32(self, name: str) -> float | None:
        """Return the largest difference from fp32, over the largest logit."""
        return _difference(self.alone[FP32], self.alone[name]) if FP32 in self.alone else None


def _difference(right: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(np.abs(right - other).max() / np.abs(right).max())


def measure_engines(folder: Path, core: int, rounds: int) -> Engines:
    """Measure all peers on the files in a folder."""
    engines, running = Engines(), []
    with ExitStack() as stack:
        for peer in PEERS:
            print(f"loading {peer.name}", file=sys.stderr, flush=True)
            with engines.unless_it_ends(peer):
                process = stack.enter_context(PeerProcess(peer, folder, core))
                engines.compare(process)
                running.append(process)
        for number in range(rounds + 1):
            print(f"engines, round {number} of {rounds}", file=sys.stderr, flush=True)
            # The first is for warming up.
            engines.turn(running, counts=number > 0)
    return engines
