"""The loop that files and streams share: take a chunk, label it, complete it."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from worker.errors import EngineError
from worker.events.records import DeadLetter, ErrorKind, Event, LabelledEvent
from worker.logs.logger import log
from worker.transports.base import ChunkAbandonedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worker.events.records import Item, Outcome
    from worker.inference.classifier import Classifier
    from worker.transports.base import ChunkT, Transport

# Fewer messages than this say nothing about the model: a few bad ones may come together.
_FEWEST_MESSAGES: Final = 16
_WINDOW_MESSAGES: Final = 100


def run(
    transport: Transport[ChunkT],
    classifier: Classifier,
    *,
    completed: Callable[[ChunkT, Sequence[Outcome]], None],
    stopping: Callable[[], bool],
) -> bool:
    """Label chunk after chunk until the transport ends, or until `stopping` returns true.

    `stopping` is asked after each chunk, and `completed` is called with each chunk that was
    completed and with its outcomes. Returns whether the transport ended.

    Raises:
        EngineError: the model fails on every text, or on most (see `FailureWindow`).
        WorkerError: the transport met an error that it cannot wait out.

    """
    failures = FailureWindow()
    for chunk in transport.chunks():
        outcomes = label(classifier, chunk.items)
        count = EngineCount.of(outcomes)
        failures.check(count)
        try:
            transport.complete(chunk, outcomes)
        except ChunkAbandonedError:
            log.warning("chunk abandoned: it will be done again", records=len(chunk.items))
        else:
            failures.remember(count)
            completed(chunk, outcomes)
        if stopping():
            return False
    return True


class EngineCount(NamedTuple):
    """How many messages the engine was given, and how many of these it failed on.

    Messages that the engine was given are those that were labelled, and those that became dead
    letters because the engine failed on them.
    """

    messages: int
    failed: int

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Self:
        """Count the outcomes of a chunk."""
        # Counting types takes half of the time that a loop with isinstance takes.
        types = Counter(map(type, outcomes))
        failed = types[DeadLetter] and sum(
            isinstance(outcome, DeadLetter) and outcome.kind is ErrorKind.ENGINE
            for outcome in outcomes
        )
        return cls(types[LabelledEvent] + failed, failed)

    @property
    def mostly_failed(self) -> bool:
        """Return whether the model is at fault; fewer than 16 messages do not show it."""
        return self.messages >= _FEWEST_MESSAGES and 2 * self.failed > self.messages


class FailureWindow:
    """Decides whether failures of the engine are the fault of single messages, or of the model.

    Only messages that the engine was given count. The model is at fault where the engine fails on
    more than half

    - of the chunk, if it has at least 16 messages; or
    - of the window, if it has at least 16: the chunk and the last completed chunks before it, as
      many whole chunks as it takes to have 100 messages, or all of them while there are fewer.

    So a chunk of 100 or more messages is judged alone, and small chunks are judged together. The
    window has whole chunks because failures may gather at the end of a large chunk, and would
    weigh too much without its beginning. Of a model that begins to fail on everything, fewer than
    100 messages become dead letters. A chunk that was abandoned is not remembered, because its
    messages come again.
    """

    def __init__(self) -> None:
        """Begin with no chunks."""
        self._chunks: deque[EngineCount] = deque()

    def check(self, chunk: EngineCount) -> None:
        """Judge a chunk before it is published.

        Raises:
            EngineError: the engine fails on most messages of the chunk, or of the window.

        """
        window = chunk
        for earlier in reversed(self._chunks):
            if window.messages >= _WINDOW_MESSAGES:
                break
            window = EngineCount(window.messages + earlier.messages, window.failed + earlier.failed)
        for count in (chunk, window):
            if count.mostly_failed:
                raise EngineError(
                    f"the model fails on {count.failed} of the last {count.messages} messages, so "
                    "they are not dead-lettered",
                    "check the model folder and the memory",
                )

    def remember(self, chunk: EngineCount) -> None:
        """Add a completed chunk, and forget chunks that no window can reach any more."""
        if not chunk.messages:
            return
        self._chunks.append(chunk)
        later = sum(count.messages for count in self._chunks) - self._chunks[0].messages
        while later >= _WINDOW_MESSAGES:
            self._chunks.popleft()
            later -= self._chunks[0].messages


def label(classifier: Classifier, items: Sequence[Item]) -> list[Outcome]:
    """Return the outcome of each item, in order; items that are no events pass through.

    Raises:
        EngineError: the model fails on every text.

    """
    labelled = iter(_label_events(classifier, [item for item in items if isinstance(item, Event)]))
    return [next(labelled) if isinstance(item, Event) else item for item in items]


def _label_events(classifier: Classifier, events: Sequence[Event]) -> list[Outcome]:
    """Label events; where the engine fails, halve them until each culprit stands alone."""
    try:
        results = classifier.classify([event.text for event in events])
    except EngineError:
        if len(events) > 1:
            middle = len(events) // 2
            first = _label_events(classifier, events[:middle])
            return first + _label_events(classifier, events[middle:])
        classifier.check()
        reason = "the model cannot score this text"
        return [DeadLetter(events[0].record, ErrorKind.ENGINE, reason)]
    return [LabelledEvent(event, result) for event, result in zip(events, results, strict=True)]
