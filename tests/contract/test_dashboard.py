"""The Grafana dashboard draws metrics that services export and that docs/operating.md explains."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/helm/files/grafana-dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def exported() -> set[str]:
    """The families that ingress and workers make, by the names that Prometheus knows them by."""
    found: set[str] = set()
    for path in ROOT.glob("services/*/*/metrics.py"):
        text = path.read_text()
        counters = set(re.findall(r'Counter\w*\(\s*"(maveriq_\w+)"', text))
        found |= {f"{name}_total" if name in counters else name for name in re.findall(r'"(maveriq_\w+)"', text)}
    return found


def drawn(panel: dict[str, Any]) -> set[str]:
    names = {name for target in panel["targets"] for name in re.findall(r"\bmaveriq_\w+", target["expr"])}
    return {name.removesuffix("_bucket") for name in names}


def test_every_metric_is_explained() -> None:
    explained = set(re.findall(r"`(maveriq_\w+)", (ROOT / "docs/operating.md").read_text()))
    assert exported() <= explained


@pytest.mark.parametrize("panel", PANELS, ids=[panel["title"] for panel in PANELS])
def test_each_panel_draws_what_is_exported(panel: dict[str, Any]) -> None:
    assert drawn(panel) <= exported()
    assert drawn(panel) or any("rabbitmq_detailed_" in target["expr"] for target in panel["targets"])


def test_panels_lie_beside_one_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    assert max(x for x, _ in taken) < 24
