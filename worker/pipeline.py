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

_WINDOW_MESSAGES: Final = 100
_FEWEST_MESSAGES: Final = 16


def run(
    transport: Transport[ChunkT],
    classifier: Classifier,
    *,
    completed: Callable[[ChunkT, Sequence[Outcome]], None],
    stopping: Callable[[], bool],
) -> bool:
    """Label chunk after chunk, until the transport ends or `stopping` returns true between two.

    Returns whether the transport ended. `completed` is called with each chunk that is done.

    Raises:
        EngineError: the model fails on a known good text, or on most messages.
        WorkerError: something happened that the transport cannot wait out.

    """
    failures = _EngineFailures()
    for chunk in transport.chunks():
        outcomes = label(classifier, chunk.items)
        failures.judge(outcomes)
        try:
            transport.complete(chunk, outcomes)
        except ChunkAbandonedError:
            log.warning("chunk abandoned: it will be done again", records=len(chunk.items))
        else:
            completed(chunk, outcomes)
        if stopping():
            return False
    return True


class _EngineFailures:
    """Whether the engine fails on so many messages that the fault is the model's, not theirs.

    A chunk is judged whole. One of fewer than 100 messages is judged together with those before it, as
    far back as 100 messages reach; there an earlier chunk counts by its average, wherever in it the
    failures stood. The model is at fault where more than half fail, of 16 messages at least.
    """

    def __init__(self) -> None:
        # Messages and failures of earlier chunks, the latest first.
        self._earlier: deque[tuple[int, int]] = deque(maxlen=_WINDOW_MESSAGES)

    def judge(self, outcomes: Sequence[Outcome]) -> None:
        """Judge a chunk, before any of its outcomes is published.

        Raises:
            EngineError: the model fails on most messages.

        """
        labelled = sum(isinstance(outcome, LabelledEvent) for outcome in outcomes)
        failed = sum(
            isinstance(outcome, DeadLetter) and outcome.kind is ErrorKind.ENGINE
            for outcome in outcomes
        )
        if not labelled + failed:
            return
        messages, failures = labelled + failed, float(failed)
        for messages_then, failures_then in self._earlier:
            counted = min(messages_then, max(0, _WINDOW_MESSAGES - messages))
            messages += counted
            failures += failures_then * counted / messages_then
        if messages >= _FEWEST_MESSAGES and 2 * failures > messages:
            raise EngineError(
                f"the model fails on {failures / messages:.0%} of the last {messages} messages, so "
                "they are not dead-lettered",
                "check the model folder and the memory",
            )
        self._earlier.appendleft((labelled + failed, failed))


def label(classifier: Classifier, items: Sequence[Item]) -> list[Outcome]:
    """Return the outcome of each item, in order; dead letters and skipped records pass through.

    Raises:
        EngineError: the model fails on a known good text.

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
