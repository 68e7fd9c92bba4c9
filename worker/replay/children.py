"""`worker replay --processes N`: children label every N-th chunk, the parent writes them in order.

All cut the inputs into the same chunks, and pass over those of the others without decoding them. A
child hands the outcomes of a chunk to the parent as they will stand in the outputs: a line of JSON,
then labels and dead letters. Only the parent writes, so outputs, checkpoint and what a kill leaves
are those of a single process.
"""

from __future__ import annotations

import json
import selectors
import socket
import subprocess
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from worker.errors import ConfigurationError, ExitCode, WorkerError
from worker.run.link import start_child
from worker.transports.files.writing import ReplayPosition, Totals

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from worker.inference.classifier import Counts

_WAIT_SECONDS: Final = 0.2
_END_SECONDS: Final = 10.0
_READ_BYTES: Final = 2**20
# How many chunks of a child may wait for those before them.
_CHUNKS_WAITING: Final = 4


class EncodedChunk(NamedTuple):
    """What a child made of a chunk; `texts` and `computed` are all it has seen and scored so far."""

    labels: Sequence[bytes]
    letters: Sequence[bytes]
    position: ReplayPosition
    bytes_read: int
    texts: int
    computed: int


class HandedOver:
    """The outputs of a child: what it labels goes to the parent."""

    finished = False

    def __init__(self, child: str) -> None:
        """Take over the socket that the parent has passed on, and begin where the parent stands."""
        number, descriptor = child.split(":")
        self.number = int(number)
        self._socket = socket.socket(fileno=int(descriptor))
        with self._socket.makefile("rb") as told:
            self.position = ReplayPosition.model_validate_json(told.readline())
        self.totals = Totals()
        self._lines: tuple[Sequence[bytes], Sequence[bytes]] = ((), ())

    def write(
        self, labels: Sequence[bytes], letters: Sequence[bytes], position: ReplayPosition
    ) -> None:
        """Keep the lines of a chunk until it is handed over."""
        self._lines = (labels, letters)
        self.position = position

    def hand_over(self, bytes_read: int, counts: Counts) -> None:
        """Send the chunk that was written last.

        Raises:
            BrokenPipeError: the parent is gone.

        """
        labels, letters = ([line + b"\n" for line in lines] for lines in self._lines)
        head = {
            "position": self.position.model_dump(),
            "labels": sum(map(len, labels)),
            "letters": sum(map(len, letters)),
            "bytes_read": bytes_read,
            "texts": counts.texts,
            "computed": counts.computed,
        }
        self._socket.sendall(b"".join([json.dumps(head).encode(), b"\n", *labels, *letters]))

    def finish(self) -> None:
        """Do nothing: the parent knows when all is done."""

    def close(self) -> None:
        """Let the parent see that no more comes."""
        self._socket.close()


class Children:
    """The processes that label, and what they have labelled."""

    def __init__(self, number: int, arguments: Sequence[str], position: ReplayPosition) -> None:
        """Start them at a position; `arguments` are those of this command."""
        self._children = [_Child(index, arguments, position) for index in range(number)]

    def __enter__(self) -> Self:
        """Return this."""
        return self

    def __exit__(self, *_: object) -> None:
        """End those that still run."""
        for child in self._children:
            child.end()

    def chunks(self) -> Iterator[EncodedChunk | None]:
        """Hand out labelled chunks in order, and None now and then, so that signals are served.

        Raises:
            ConfigurationError: a child says that something does not fit.
            WorkerError: a child has ended too early.

        """
        number = 0
        while True:
            child = self._children[number % len(self._children)]
            if child.labelled:
                number += 1
                yield child.labelled.popleft()
            elif child.ended:
                break
            else:
                self._listen()
                yield None
        for child in self._children:
            child.check()

    @property
    def hit_rate(self) -> float:
        """Return the share of texts that no child had to score."""
        texts, computed = (sum(c.counts[n] for c in self._children) for n in (0, 1))
        return 1 - computed / texts if texts else 0.0

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for child in self._children:
                if not child.ended and len(child.labelled) < _CHUNKS_WAITING:
                    selector.register(child.socket, selectors.EVENT_READ, child)
            for key, _ in selector.select(_WAIT_SECONDS):
                key.data.read()


class _Child:
    """One process that labels its share."""

    def __init__(self, number: int, arguments: Sequence[str], position: ReplayPosition) -> None:
        self.labelled: deque[EncodedChunk] = deque()
        self.ended = False
        self.counts = (0, 0)
        self._number = number
        self._unread = bytearray()
        self.socket, self._process = start_child(number, arguments)
        with suppress(BrokenPipeError):
            self.socket.sendall(position.model_dump_json().encode() + b"\n")

    def read(self) -> None:
        """Take what the child has sent."""
        data = b""
        # One that died before it read where to begin.
        with suppress(ConnectionResetError):
            data = self.socket.recv(_READ_BYTES)
        self.ended = not data
        self._unread += data
        while chunk := self._next():
            self.labelled.append(chunk)
            self.counts = (chunk.texts, chunk.computed)

    def check(self) -> None:
        """See that the process has come to its end.

        Raises:
            ConfigurationError: it says that something does not fit.
            WorkerError: it has died or failed.

        """
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        if code := self._process.poll():
            kind = ConfigurationError if code == ExitCode.WRONG_USAGE else WorkerError
            raise kind(
                f"process {self._number} has failed (exit code {code})",
                "see what it says above, then run the same command again: with -o it continues",
            )

    def end(self) -> None:
        """End the process at once, if it still runs: it holds nothing that another needs."""
        self.socket.close()
        self._process.kill()
        self._process.wait()

    def _next(self) -> EncodedChunk | None:
        """Cut the next chunk off what was read, if all of it is there."""
        line, found, _ = self._unread.partition(b"\n")
        if not found:
            return None
        head = json.loads(line)
        letters = len(line) + 1 + head["labels"]
        end = letters + head["letters"]
        if len(self._unread) < end:
            return None
        chunk = EncodedChunk(
            bytes(self._unread[len(line) + 1 : letters]).split(b"\n")[:-1],
            bytes(self._unread[letters:end]).split(b"\n")[:-1],
            ReplayPosition(**head["position"]),
            head["bytes_read"],
            head["texts"],
            head["computed"],
        )
        del self._unread[:end]
        return chunk
