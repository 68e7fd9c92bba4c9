"""The loop: take a chunk, label it, complete it. The same for files and for streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.errors import EngineError
from worker.messages import DeadLetter, ErrorKind, Event, Labelled
from worker.telemetry.logs import log
from worker.transports.base import ChunkAbandonedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worker.classifier import Classifier
    from worker.messages import Item, Outcome
    from worker.transports.base import ChunkT, Transport


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
        EngineError: the model fails on every text.
        WorkerError: whatever else the transport cannot wait out.

    """
    for chunk in transport.chunks():
        outcomes = label(classifier, chunk.items)
        try:
            transport.complete(chunk, outcomes)
        except ChunkAbandonedError:
            log.warning("chunk abandoned: it will be done again", records=len(chunk.items))
        else:
            completed(chunk, outcomes)
        if stopping():
            return False
    return True


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
    return [Labelled(event, result) for event, result in zip(events, results, strict=True)]
