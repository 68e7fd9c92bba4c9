"""`worker replay --processes N`: children label every N-th chunk, the parent writes them in order.

Every process cuts the inputs into the same chunks, and passes over the chunks of the others without
decoding them. A child sends the outcomes of a chunk to its parent as they will stand in the
outputs: a line of JSON, then the lines of the labels and of the dead letters. Only the parent
writes, so outputs, checkpoint and what a kill leaves behind are those of a single process.
"""

from __future__ import annotations

import json
import selectors
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from worker.children import ChildProcess, child_error, connect_to_parent
from worker.errors import WorkerError
from worker.transports.files.writing import EncodedOutcomes, ReplayPosition, Totals

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from worker.inference.classifier import Counts

_WAIT_SECONDS: Final = 0.2
_EXIT_SECONDS: Final = 10.0
_EXIT_CHECK_SECONDS: Final = 0.01
# How many chunks of a child may wait for the chunks before them.
_CHUNKS_WAITING: Final = 4
_CONTINUES: Final = "run the same command again: with -o it continues"


class EncodedChunk(NamedTuple):
    """A chunk that a child has labelled.

    `texts` and `computed` count all texts that the child has labelled so far, and those of them
    that it had to score.
    """

    outcomes: EncodedOutcomes
    position: ReplayPosition
    bytes_read: int
    texts: int
    computed: int


class ParentOutputs:
    """The outputs of a child: it sends what it labels to its parent, which writes it."""

    finished = False

    def __init__(self, child: str) -> None:
        """Connect to the parent by the value of `--child`, and begin at the parent's position."""
        self.child_number, self._socket = connect_to_parent(child)
        with self._socket.makefile("rb") as received:
            self.position = ReplayPosition.model_validate_json(received.readline())
        self.totals = Totals()
        self._outcomes = EncodedOutcomes((), (), 0)

    def write(self, outcomes: EncodedOutcomes, position: ReplayPosition) -> None:
        """Keep the lines of a chunk until they are sent."""
        self._outcomes = outcomes
        self.position = position

    def send(self, bytes_read: int, counts: Counts) -> None:
        """Send the chunk that was written last.

        Raises:
            BrokenPipeError: the parent is gone.

        """
        lines = (self._outcomes.labels, self._outcomes.letters)
        labels, letters = ([line + b"\n" for line in each] for each in lines)
        head = {
            "position": self.position.model_dump(),
            "labels": sum(map(len, labels)),
            "letters": sum(map(len, letters)),
            "truncated": self._outcomes.truncated,
            "bytes_read": bytes_read,
            "texts": counts.texts,
            "computed": counts.computed,
        }
        self._socket.sendall(b"".join([json.dumps(head).encode(), b"\n", *labels, *letters]))

    def finish(self) -> None:
        """Do nothing: the parent knows when all inputs are done."""

    def close(self) -> None:
        """Close the socket, so that the parent sees that no more chunks come."""
        self._socket.close()


class Children:
    """The processes that label, and the chunks that they have labelled."""

    def __init__(self, number: int, arguments: Sequence[str], position: ReplayPosition) -> None:
        """Start them at a position; `arguments` are those of this command line."""
        self._children = [_LabellingChild(index, arguments, position) for index in range(number)]

    def __enter__(self) -> Self:
        """Return this."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the children that still run: they hold nothing that is needed any more."""
        for child in self._children:
            child.kill()

    def chunks(self) -> Iterator[EncodedChunk | None]:
        """Hand out labelled chunks in order, and None now and then, so that signals are served.

        A child that has failed ends this at once, whichever child's chunk comes next.

        Raises:
            ConfigurationError: a child has ended because files or settings do not fit.
            WorkerError: a child has died or failed, or does not end.

        """
        number = 0
        while True:
            child = self._children[number % len(self._children)]
            if child.labelled:
                number += 1
                yield child.labelled.popleft()
                continue
            self._check()
            if not child.connected:
                break
            self._listen()
            yield None
        self._wait_for_exits()

    @property
    def hit_rate(self) -> float:
        """Return the share of texts that no child had to score, from 0 to 1."""
        texts, computed = (sum(c.counts[n] for c in self._children) for n in (0, 1))
        return 1 - computed / texts if texts else 0.0

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for child in self._children:
                if child.connected and len(child.labelled) < _CHUNKS_WAITING:
                    selector.register(child.socket, selectors.EVENT_READ, child)
            for key, _ in selector.select(_WAIT_SECONDS):
                key.data.read()

    def _check(self) -> None:
        """Raise the error of a child that has failed, if one has, without waiting for any."""
        for child in self._children:
            if code := child.exit_code:
                raise child_error(
                    code,
                    f"process {child.number} has failed (exit code {code})",
                    f"see what it says above, then {_CONTINUES}",
                )

    def _wait_for_exits(self) -> None:
        """Wait until all children have ended well: only then are all chunks known to be there."""
        ends = time.monotonic() + _EXIT_SECONDS
        while running := [child for child in self._children if child.exit_code is None]:
            self._check()
            if time.monotonic() > ends:
                raise WorkerError(f"process {running[0].number} does not end", _CONTINUES)
            time.sleep(_EXIT_CHECK_SECONDS)
        self._check()


class _LabellingChild(ChildProcess):
    """One process that labels its share of the chunks."""

    def __init__(self, number: int, arguments: Sequence[str], position: ReplayPosition) -> None:
        super().__init__(number, arguments)
        self.labelled: deque[EncodedChunk] = deque()
        self.counts = (0, 0)
        self._unread = bytearray()
        # A child that has died already is found by its exit code.
        with suppress(BrokenPipeError):
            self.socket.sendall(position.model_dump_json().encode() + b"\n")

    def read(self) -> None:
        """Take the chunks that the child has sent."""
        self._unread += self.receive()
        while chunk := self._next():
            self.labelled.append(chunk)
            self.counts = (chunk.texts, chunk.computed)

    def _next(self) -> EncodedChunk | None:
        """Cut the next chunk off what was read; None if not all of it is there yet."""
        line, found, _ = self._unread.partition(b"\n")
        if not found:
            return None
        head = json.loads(line)
        letters = len(line) + 1 + head["labels"]
        end = letters + head["letters"]
        if len(self._unread) < end:
            return None
        chunk = EncodedChunk(
            EncodedOutcomes(
                bytes(self._unread[len(line) + 1 : letters]).split(b"\n")[:-1],
                bytes(self._unread[letters:end]).split(b"\n")[:-1],
                head["truncated"],
            ),
            ReplayPosition(**head["position"]),
            head["bytes_read"],
            head["texts"],
            head["computed"],
        )
        del self._unread[:end]
        return chunk
