"""The loop: take a chunk, label it, complete it. The same for files and for streams."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from worker.errors import EngineError
from worker.events.records import DeadLetter, ErrorKind, Event, LabelledEvent
from worker.logs.logger import log
from worker.transports.base import ChunkAbandonedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worker.events.records import Item, Outcome
    from worker.inference.classifier import Classifier
    from worker.transports.base import ChunkT, Transport

_LAST_MESSAGES: Final = 100
_FEWEST_MESSAGES: Final = 16


def run(
    transport: Transport[ChunkT],
    classifier: Classifier,
    *,
    completed: Callable[[ChunkT, Sequence[Outcome]], None],
    stopping: Callable[[], bool],
) -> bool:
    """Label chunk after chunk until the transport ends or `stopping` says so between two.

    Returns whether the transport ended. `completed` is called with each chunk that is done.

    Raises:
        EngineError: the model fails on every text, or on most.
        WorkerError: whatever else the transport cannot wait out.

    """
    failures = _Failures()
    for chunk in transport.chunks():
        outcomes = label(classifier, chunk.items)
        failures.count(outcomes)
        try:
            transport.complete(chunk, outcomes)
        except ChunkAbandonedError:
            log.warning("chunk abandoned: it will be done again", records=len(chunk.items))
        else:
            completed(chunk, outcomes)
        if stopping():
            return False
    return True


class _Failures:
    """How many of the last messages the engine failed on."""

    def __init__(self) -> None:
        self._last: deque[bool] = deque(maxlen=_LAST_MESSAGES)

    def count(self, outcomes: Sequence[Outcome]) -> None:
        """Count outcomes, before they are published.

        Raises:
            EngineError: most messages fail, so the fault is hardly theirs.

        """
        for outcome in outcomes:
            if isinstance(outcome, LabelledEvent):
                self._last.append(False)
            elif isinstance(outcome, DeadLetter) and outcome.kind is ErrorKind.ENGINE:
                self._last.append(True)
        if len(self._last) >= _FEWEST_MESSAGES and 2 * sum(self._last) > len(self._last):
            raise EngineError(
                f"the model fails on {sum(self._last)} of the last {len(self._last)} messages, so "
                "they are not dead-lettered",
                "check the model folder and the memory",
            )


def label(classifier: Classifier, items: Sequence[Item]) -> list[Outcome]:
    """Return the outcome of each item, in order; what is no event passes through.

    Raises:
        EngineError: the model fails on every text.

    """
    labelled = iter(_label_events(classifier, [item for item in items if isinstance(item, Event)]))
    return [next(labelled) if isinstance(item, Event) else item for item in items]


def _label_events(classifier: Classifier, events: Sequence[Event]) -> list[Outcome]:
    """Label events; where the engine fails, halve them until the culprit stands alone."""
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
