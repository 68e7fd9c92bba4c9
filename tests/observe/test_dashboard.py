"""The dashboard, as far as can be seen without a Grafana: it is whole, and fits its data source."""

from __future__ import annotations

from itertools import combinations

import pytest
import yaml

from tests.observe.dashboard import CONTENT, FOLDER, PANELS, TARGETS
from worker.telemetry.catalogue import CATALOGUE

(SOURCE,) = yaml.safe_load((FOLDER / "datasources.yml").read_bytes())["datasources"]
WIDTH = 24


def test_every_panel_and_query_has_the_source_that_is_provisioned() -> None:
    source = {"type": SOURCE["type"], "uid": SOURCE["uid"]}
    assert [panel["datasource"] for panel in PANELS] == [source] * len(PANELS)
    targets = [target for panel in PANELS for target in panel["targets"]]
    assert [target["datasource"] for target in targets] == [source] * len(targets)


def test_panels_have_ids_titles_and_places_of_their_own() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    places = [panel["gridPos"] for panel in PANELS]
    assert all(place["x"] + place["w"] <= WIDTH for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below


def test_it_can_be_linked_to() -> None:
    assert CONTENT["uid"] == "chat-label-worker"


@pytest.mark.parametrize(
    "name",
    [
        *("worker_messages_total", "worker_lag_records", "worker_latency_seconds"),
        *("worker_answers_total", "worker_labels_total", "worker_batch_texts"),
        *("worker_step_seconds_total", "worker_dead_letters_total", "worker_rebalances_total"),
    ],
)
def test_what_an_operator_asks_first_is_shown(name: str) -> None:
    assert name in {definition.name for definition in CATALOGUE}
    assert any(name in target.query for target in TARGETS)
