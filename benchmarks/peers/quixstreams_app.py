"""Contender: Quix Streams around this worker's classifier.

It hands out a message at a time: what it collects in windows, it collects by key.
"""

from __future__ import annotations

import sys
from typing import Any

from quixstreams import Application  # type: ignore[import-not-found]  # in its environment

from worker.inference.classifier import Classifier


def main() -> None:
    bootstrap, source, target, group, folder, _ = sys.argv[1:]
    classifier = Classifier.load(f"{folder}/model", memory_entries=0)
    application = Application(
        broker_address=bootstrap, consumer_group=group, auto_offset_reset="earliest"
    )

    def label(event: dict[str, Any]) -> dict[str, Any]:
        (result,) = classifier.classify([event["text"]])
        return {"labels": result.labels, "scores": dict(result.scores)}

    labels = application.dataframe(application.topic(source)).apply(label)
    labels.to_topic(application.topic(target))
    application.run()


if __name__ == "__main__":
    main()
