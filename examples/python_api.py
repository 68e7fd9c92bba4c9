"""Label texts from Python.

The example shows what one text gets (labels, and a score for every label), how a program sets
thresholds of its own, and that a text has the same scores alone and among others.

Run it: python examples/python_api.py
"""

from __future__ import annotations

from worker import Classifier

TEXTS = (
    "good morning, the server is up again",
    "I love how this patch turned out",
    "stop stealing my kills, I am so angry",
    "wow, I did not expect that comeback",
)


def main() -> None:
    """Label a few texts and print what they got."""
    with Classifier.load() as classifier:
        results = classifier.classify(TEXTS)
        for text, result in zip(TEXTS, results, strict=True):
            best = max(result.scores, key=result.scores.__getitem__)
            labels = ", ".join(result.labels) or "no label"
            print(f"{text!r}: {labels} (highest score: {best} {result.scores[best]:.3f})")

        # Batches are exact: the scores are equal to the last bit.
        (alone,) = classifier.classify(TEXTS[:1])
        print(
            "The first text alone has equal scores:", dict(alone.scores) == dict(results[0].scores)
        )

    # A higher threshold gives a label to fewer texts.
    with Classifier.load(thresholds={"joy": 0.999}) as strict:
        print("Joy is there at a threshold of 0.999:", "joy" in strict.classify(TEXTS)[1].labels)


if __name__ == "__main__":
    main()
