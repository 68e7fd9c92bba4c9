"""Every query of the dashboard and of the alerts, on a Prometheus that has watched a worker at work."""

from __future__ import annotations

import math
import re
from itertools import islice
from threading import Event, Thread
from typing import TYPE_CHECKING

import pytest

from tests.kafka.broker import wait_until
from tests.kafka.health import LISTEN, wait_until_ready
from tests.observe.dashboard import TARGETS
from tests.observe.prometheus import scraping
from tests.observe.test_alerts import RULES
from worker.demo.chat import ChatStream, example_messages

if TYPE_CHECKING:
    from tests.kafka.stage import Stage

# Grafana puts at least four scrapes there.
WINDOW = {"$__rate_interval": "1m"}
COMPARISON = re.compile(r" (==|!=|>=|<=|>|<) ")
MESSAGES_EACH_TIME = 200


def keep_producing(stage: Stage, done: Event) -> None:
    """Write the examples with the broken ones, and then new messages without end."""
    stage.produce_values([message.value for message in example_messages()])
    messages = ChatStream(seed=1).messages()
    while not done.is_set():
        stage.produce_values([m.value for m in islice(messages, MESSAGES_EACH_TIME)])


def problems(values: list[float], unit: str) -> str | None:
    """Say why these cannot be what a panel with that unit shows."""
    if not values:
        return "nothing"
    if not all(math.isfinite(value) and value >= 0 for value in values):
        return "no numbers from 0"
    if unit == "percentunit" and not math.isclose(sum(values), 1):
        return "no shares of 1"
    return None


@pytest.mark.slow
def test_every_query_finds_what_it_is_about(stage: Stage) -> None:
    """All queries are in one test, because it takes time until Prometheus has seen enough."""
    worker = stage.worker(**LISTEN, CACHE__ENABLED="true")
    wait_until_ready(worker)
    (address,) = (e["address"] for e in worker.events() if e["event"] == "listening")
    done = Event()
    producer = Thread(target=keep_producing, args=(stage, done))
    with scraping(address, stage.folder) as prometheus:
        producer.start()
        try:
            labelled = "rate(worker_messages_total[1m]) > 0"
            wait_until(lambda: bool(prometheus.query(labelled)), "two scrapes of it at work")
            wrong = {}
            for target in TARGETS:
                query = target.query
                for name, window in WINDOW.items():
                    query = query.replace(name, window)
                series = prometheus.query(query)
                found = problems([float(each["value"][1]) for each in series], target.unit)
                if found or any(target.labels - each["metric"].keys() for each in series):
                    wrong[target.panel, target.legend] = found or "no label for its legend"
            assert wrong == {}
            for rule in RULES:
                # `bool` asks whether the alert holds; the alert itself has no series while all is well.
                condition = COMPARISON.sub(r" \1 bool ", rule["expr"])
                assert condition != rule["expr"]
                values = {each["value"][1] for each in prometheus.query(condition)}
                assert values
                assert values <= {"0", "1"}, rule["alert"]
            wait_until(lambda: all(r["health"] == "ok" for r in prometheus.rules()), "alerts")
            assert [r["name"] for r in prometheus.rules() if r["state"] == "firing"] == []
        finally:
            done.set()
            producer.join()
