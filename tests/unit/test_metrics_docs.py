"""docs/metrics.md and the dashboard against the metrics there are."""

from __future__ import annotations

import json
import re
import runpy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pycni.agent.metrics import Description
from pycni.agent.metrics_text import AREAS, area_of, metrics_markdown
from tests.unit.metrics_world import everything

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "pycni.json"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yaml"


@pytest.fixture(scope="module")
def described() -> tuple[Description, ...]:
    return everything().describe()


def test_the_documentation_has_every_metric(described: tuple[Description, ...]) -> None:
    match = re.search(
        r"<!-- metrics begin -->\n(.*?)<!-- metrics end -->",
        (ROOT / "docs/metrics.md").read_text(),
        re.DOTALL,
    )
    assert match is not None
    assert match[1] == metrics_markdown(described)


def test_names_follow_prometheus_conventions(described: tuple[Description, ...]) -> None:
    for item in described:
        assert item.text.endswith("."), item.name
        assert "|" not in item.text, item.name
        if item.kind != "untyped":
            assert item.name.endswith("_total") == (item.kind == "counter"), item.name
        if item.name.startswith("pycni_") and item.kind == "histogram":
            assert item.name.endswith("_seconds")
        # Labels of Prometheus' own would be renamed.
        assert not {"job", "instance", "node"} & set(item.labels), item.name


def test_every_area_has_metrics(described: tuple[Description, ...]) -> None:
    assert {area_of(item.name) for item in described} == set(AREAS)


def expressions(value: Any) -> list[str]:
    """Every query anywhere in the dashboard."""
    if isinstance(value, dict):
        own = [value["expr"]] if isinstance(value.get("expr"), str) else []
        return own + [text for item in value.values() for text in expressions(item)]
    return [text for item in value for text in expressions(item)] if isinstance(value, list) else []


@pytest.mark.parametrize("path", [DASHBOARD, ALERTS], ids=["dashboard", "alerts"])
def test_queries_ask_for_metrics_there_are(described: tuple[Description, ...], path: Path) -> None:
    known = {item.name for item in described}
    known |= {
        f"{item.name}_{part}"
        for item in described
        if item.kind == "histogram"
        for part in ("bucket", "sum", "count")
    }
    text = path.read_text()
    if path is DASHBOARD:
        text = "\n".join(expressions(json.loads(text)))
    asked = set(re.findall(r"\b(?:pycni|kubeproxy|kube_router|process)_[a-z0-9_]+", text))
    assert asked - known == set()
    assert len(asked) > 25


def test_the_dashboard_is_what_its_maker_makes() -> None:
    made = runpy.run_path(str(ROOT / "tools" / "dashboard.py"))["dashboard"]()
    assert json.loads(DASHBOARD.read_text()) == made


def test_the_dashboard_is_built_as_grafana_wants_it() -> None:
    board = json.loads(DASHBOARD.read_text())
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= board.keys()
    panels = board["panels"]
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == [
        "Overview",
        "Fabric and peers",
        "Pods and addresses",
        "Services",
        "Policies and drops",
        "BGP",
        "Connection tracking",
        "Errors and drift",
    ]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["type"] in {"stat", "timeseries", "table"}
        assert panel["targets"], panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert all(one["gridPos"]["y"] <= two["gridPos"]["y"] for one, two in pairwise(panels))
    variables = {item["name"]: item for item in board["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance"]
    used = set(re.findall(r"\$\{?(\w+)", "\n".join(expressions(board))))
    assert used <= {"job", "instance", "__rate_interval"}
