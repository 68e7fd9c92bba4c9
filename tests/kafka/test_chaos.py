"""A short chaos: some faults of each kind strike workers, and nothing is lost, doubled or mixed up.

`make chaos` lets every fault strike everywhere, and for long. CHAOS_SEED repeats a run's choices.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.kafka.broker import Cluster
from tests.kafka.chaos import Plan, Strike, run
from tests.kafka.proxy import Api, Moment

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kafka.broker import Kafka
    from worker.inference.classifier import Classifier

SEED = int(os.environ.get("CHAOS_SEED", "7"))
SECONDS = 30
REQUEST, ANSWER = Moment.BEFORE_REQUEST, Moment.BEFORE_ANSWER
AT_LARGE = [Strike("refuse"), Strike("kill-broker"), Strike("bystander"), Strike("replace")]
STRIKES = {
    "at-least-once": [
        Strike("kill", Api.FETCH, ANSWER),
        Strike("kill", Api.PRODUCE, ANSWER),
        Strike("kill", Api.OFFSET_COMMIT, REQUEST),
        Strike("freeze", Api.PRODUCE, REQUEST),
        Strike("stall", Api.OFFSET_COMMIT, REQUEST),
        Strike("cut", Api.PRODUCE, ANSWER),
        Strike("late", Api.OFFSET_COMMIT, ANSWER),
        Strike("black-hole", Api.PRODUCE, ANSWER),
        *AT_LARGE,
    ],
    "exactly-once": [
        Strike("kill", Api.PRODUCE, ANSWER),
        Strike("kill", Api.TXN_OFFSET_COMMIT, ANSWER),
        Strike("kill", Api.END_TXN, REQUEST),
        Strike("kill", Api.END_TXN, ANSWER),
        Strike("freeze", Api.ADD_OFFSETS_TO_TXN, REQUEST),
        Strike("cut", Api.TXN_OFFSET_COMMIT, ANSWER),
        Strike("late", Api.PRODUCE, REQUEST),
        Strike("black-hole", Api.END_TXN, ANSWER),
        *AT_LARGE,
    ],
}


@pytest.mark.slow
@pytest.mark.usefixtures("kafka_node")
@pytest.mark.parametrize("guarantee", STRIKES)
def test_no_fault_breaks_a_promise(
    kafka: Kafka, tmp_path: Path, classifier: Classifier, guarantee: str
) -> None:
    assert isinstance(kafka, Cluster)
    plan = Plan(guarantee, SEED, SECONDS, STRIKES[guarantee])
    result = run(plan, kafka, tmp_path / "workers", classifier)
    print(result)
    assert result.problems() == []
    assert result.report.messages > 0
