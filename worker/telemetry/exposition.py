"""Shows the numbers of all processes to Prometheus, each series with the label `process`."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)

from worker.telemetry.catalogue import CATALOGUE, LIVE, READY
from worker.telemetry.metrics import Series

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client.core import Metric

    from worker.telemetry.catalogue import Definition
    from worker.telemetry.metrics import Snapshot, Status


def families(statuses: Sequence[Status]) -> Iterator[Metric]:
    """Yield every metric of the catalogue in its order, with the series of all processes."""
    known = [
        (str(status.process), (status.metrics or {}) | _health_of(status)) for status in statuses
    ]
    for definition in CATALOGUE:
        yield _family(
            definition,
            [
                ([process, *series["labels"]], series["values"])
                for process, snapshot in known
                for series in snapshot.get(definition.name, ())
            ],
        )


def _health_of(status: Status) -> Snapshot:
    """Return the two metrics that a process cannot report about itself."""
    return {
        LIVE.name: [Series(labels=[], values=[int(status.live)])],
        READY.name: [Series(labels=[], values=[int(status.ready)])],
    }


def _family(definition: Definition, rows: Sequence[tuple[list[str], list[float]]]) -> Metric:
    labels = ("process", *definition.labels)
    if definition.kind == "histogram":
        histogram = HistogramMetricFamily(definition.name, definition.help, labels=labels)
        ends = [*(str(bound) for bound in definition.bounds), "+Inf"]
        for label_values, (*counts, total) in rows:
            buckets = list(zip(ends, accumulate(counts), strict=True))
            histogram.add_metric(label_values, buckets, total)
        return histogram
    family_type = CounterMetricFamily if definition.kind == "counter" else GaugeMetricFamily
    family = family_type(definition.name, definition.help, labels=labels)
    for label_values, (number,) in rows:
        family.add_metric(label_values, number)
    return family
