"""The panels of the dashboard, as Grafana reads them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.observe.prometheus import ROOT

if TYPE_CHECKING:
    from typing import Any

FOLDER = ROOT / "configs" / "grafana"
CONTENT: dict[str, Any] = json.loads((FOLDER / "worker.json").read_bytes())
PANELS: list[dict[str, Any]] = CONTENT["panels"]


@dataclass(frozen=True)
class Target:
    """A query of a panel, and the legend of its series."""

    panel: str
    unit: str
    query: str
    legend: str

    @property
    def labels(self) -> set[str]:
        """Return the labels that the legend names."""
        return set(re.findall(r"{{(\w+)}}", self.legend))


TARGETS = [
    Target(
        panel["title"],
        panel["fieldConfig"]["defaults"]["unit"],
        target["expr"],
        target["legendFormat"],
    )
    for panel in PANELS
    for target in panel["targets"]
]
