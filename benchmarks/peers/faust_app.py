"""Contender: faust-streaming around this worker's classifier, in batches.

A batch is done once its labels are acknowledged. But faust also counts a batch as done that raised:
where one of 4,000 messages' batches did, all 4,000 were committed, and 818 had no label.
"""

from __future__ import annotations

import sys
from typing import Any

import faust  # type: ignore[import-not-found]  # in its environment

from worker.inference.classifier import Classifier

# As the worker's own chunks are by default.
CHUNK, SECONDS = 2048, 0.5


def main() -> None:
    bootstrap, source, target, group, folder, _ = sys.argv[1:]
    classifier = Classifier.load(f"{folder}/model", memory_entries=0)
    application = faust.App(
        group,
        broker=f"kafka://{bootstrap}",
        consumer_auto_offset_reset="earliest",
        topic_disable_leader=True,
        web_enabled=False,
    )
    labels = application.topic(target, key_serializer="raw", value_serializer="json")

    @application.agent(application.topic(source, key_serializer="raw", value_serializer="json"))  # type: ignore[untyped-decorator]  # faust is not here
    async def label(stream: Any) -> None:  # noqa: ANN401 - faust, which types it, is not installed here
        async for events in stream.take_events(CHUNK, within=SECONDS):
            results = classifier.classify([event.value["text"] for event in events])
            sent = [
                await labels.send(
                    key=event.key, value={"labels": each.labels, "scores": dict(each.scores)}
                )
                for event, each in zip(events, results, strict=True)
            ]
            for record in sent:
                await record

    faust.Worker(application, loglevel="info").execute_from_commandline()


if __name__ == "__main__":
    main()
