"""A Prometheus of its own for tests, as the Makefile has fetched it or as it is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import closing, contextmanager
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest
import yaml

from tests.kafka.broker import PATIENCE, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "prometheus"
FETCHED = ROOT / "build" / "prometheus" / "usr" / "bin"


def program(name: str) -> str:
    """Return the path of prometheus or promtool; where there is none the test skips, or fails in CI."""
    path = shutil.which(name, path=f"{FETCHED}{os.pathsep}{os.environ['PATH']}")
    if path is None:
        reason = f"there is no {name}: `make build/prometheus/.unpacked` has not fetched it"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return path


class Prometheus:
    """One that runs, and what a test asks of it."""

    def __init__(self, port: int) -> None:
        self._port = port

    def ready(self) -> bool:
        try:
            return self._get("/-/ready")[0] == HTTPStatus.OK
        except ConnectionError:
            return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an instant query: labels as `metric`, time and text as `value`."""
        data = self._data("query?" + urlencode({"query": expression}))
        assert data["resultType"] == "vector"
        series: list[dict[str, Any]] = data["result"]
        return series

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._data("rules")["groups"] for rule in group["rules"]]

    def _data(self, path: str) -> Any:
        status, body = self._get(f"/api/v1/{path}")
        assert status == HTTPStatus.OK, body
        return json.loads(body)["data"]

    def _get(self, path: str) -> tuple[int, bytes]:
        with closing(HTTPConnection("127.0.0.1", self._port, PATIENCE)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()


@contextmanager
def scraping(address: str, folder: Path) -> Iterator[Prometheus]:
    """Run Prometheus with this project's rules, and its configuration but for where workers are."""
    config = yaml.safe_load((CONFIGS / "prometheus.yml").read_bytes())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(CONFIGS / name) for name in config["rule_files"]]
    (job,) = config["scrape_configs"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": [address]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    prometheus = Prometheus(port := free_port())
    command = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'series'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(lambda: prometheus.ready() or process.poll() is not None, "Prometheus")
        assert process.poll() is None, (folder / "prometheus.log").read_text(encoding="utf-8")
        yield prometheus
    finally:
        process.kill()
        process.wait()
