"""Alert rules: each fires when it should, and is fit for who reads it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import yaml

from tests.observe.prometheus import CONFIGS, program

CASES = Path(__file__).parent / "alerts.yml"
RULES = [
    rule
    for group in yaml.safe_load((CONFIGS / "alerts.yml").read_bytes())["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"] for rule in RULES}


def promtool(*arguments: str | Path) -> str:
    result = subprocess.run(
        [program("promtool"), *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_configuration_is_one() -> None:
    assert f"{len(ALERTS)} rules found" in promtool("check", "config", CONFIGS / "prometheus.yml")


def test_alerts_fire_when_they_should_and_not_before() -> None:
    promtool("test", "rules", CASES)


def test_each_alert_is_seen_to_fire_and_not_to_fire() -> None:
    seen: dict[bool, set[str]] = {True: set(), False: set()}
    for test in yaml.safe_load(CASES.read_bytes())["tests"]:
        for case in test["alert_rule_test"]:
            seen[bool(case["exp_alerts"])].add(case["alertname"])
    assert seen == {True: ALERTS, False: ALERTS}


def test_each_alert_says_what_is_wrong_and_what_to_do() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in {"page", "ticket"}
        for sentence in (rule["annotations"]["summary"], rule["annotations"]["action"]):
            assert re.fullmatch(r"\S.*\.", sentence), rule["alert"]
