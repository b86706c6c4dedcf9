"""Dashboard and alerts: they ask for metrics that there are, and tell of what they are to tell."""

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from tests.server.api.conftest import Served

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "latentevolve.json").read_text())
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
CONFIG = ROOT / "deploy" / "prometheus" / "prometheus.yml"
METRIC = re.compile(r"\b(?:latentevolve|vllm)[_:][a-z_:]+")


def expressions(node: Any) -> list[str]:
    """Return every expression in a document, and what variables are filled from."""
    if isinstance(node, dict):
        here = [node[name] for name in ("expr", "definition") if isinstance(node.get(name), str)]
        return here + [found for value in node.values() for found in expressions(value)]
    if isinstance(node, list):
        return [found for value in node for found in expressions(value)]
    return []


def names(queries: list[str]) -> set[str]:
    return {name for query in queries for name in METRIC.findall(query)}


def samples(name: str, kind: str) -> set[str]:
    """Return the names of the samples of a family."""
    if kind == "counter":
        return {f"{name.removesuffix('_total')}_total"}
    if kind == "histogram":
        return {f"{name}_{part}" for part in ("bucket", "sum", "count")}
    return {name}


def of_vllm() -> set[str]:
    """Return the names of the samples of vLLM's own metrics, out of its sources."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "v1" / "metrics" / "loggers.py").read_text()
    found = re.findall(r"self\._(counter|gauge|histogram)_cls\(\s*name=\"(vllm:[a-z_]+)\"", source)
    assert len(found) > 30
    return {sample for kind, name in found for sample in samples(name, kind)}


@pytest.mark.parametrize("queries", [expressions(DASHBOARD), expressions(yaml.safe_load(RULES.read_text()))])
async def test_every_metric_that_is_asked_for_is_there(served: Served, queries: list[str]) -> None:
    text = (await served.http.get("/metrics")).text
    known = of_vllm()
    for family in text_string_to_metric_families(text):
        known |= samples(family.name, family.type)
    assert len(names(queries)) > 10
    assert names(queries) <= known


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    from server.steering.metrics import Metrics

    registry = CollectorRegistry()
    Metrics(registry)
    shown = names(expressions(DASHBOARD))
    for family in registry.collect():
        assert samples(family.name, family.type) & shown, family.name


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_labels_that_alerts_select_by_have_such_values() -> None:
    values = {
        "state": {"queued", "failed"},
        "standing": {"retired"},
        "status": {"5xx"},
        "result": {"refused", "failed", "dropped", "unavailable"},
    }
    text = RULES.read_text()
    for label, known in values.items():
        selected = re.findall(rf'\b{label}!?=~?"([^"]*)"', text)
        assert selected, label
        assert {value for one in selected for value in one.split("|")} <= known


def promtool(*arguments: str | Path) -> str:
    """Return what promtool says, which is what counts; skip where it is missing."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    found = subprocess.run([program, *arguments], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def test_promtool_takes_configuration_and_rules() -> None:
    assert "rules found" in promtool("check", "config", CONFIG)
    promtool("check", "rules", RULES)


def test_each_alert_is_raised_by_what_it_is_named_for_and_by_nothing_else() -> None:
    cases = Path(__file__).with_name("alerts.yml")
    promtool("test", "rules", cases)
    tried = re.findall(r'alertname="(\w+)"', cases.read_text())
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    assert set(tried) == {rule["alert"] for rule in group["rules"]}


def test_promtool_reads_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    filled = [
        query.replace("$job", "latentevolve").replace("$__rate_interval", "1m")
        for query in expressions(DASHBOARD)
        if not query.startswith("label_values(")
    ]
    rules = [{"record": f"dashboard:{number}", "expr": query} for number, query in enumerate(filled)]
    written = tmp_path / "dashboard.yml"
    written.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(filled)} rules found" in promtool("check", "rules", written)
