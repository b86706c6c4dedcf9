"""What every benchmark writes."""

import json
import math
from pathlib import Path

import pytest

from bench.machine import machine
from bench.ratio import ratio, ratio_text
from bench.result import Report, finite, quantiles_ms
from cli.failure import CommandError
from cli.screen import Screen


def test_document_names_hardware_date_versions_and_settings(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    Report(Screen(), "some", {"size": 3, "folder": None}, path).publish({"speed": 2.0, "high": math.inf})
    document = json.loads(path.read_text())
    assert document["benchmark"] == "some"
    assert document["settings"] == {"size": 3, "folder": None}
    assert document["results"] == {"speed": 2.0, "high": None}
    assert document["hardware"]["cores"] >= 1
    assert document["hardware"]["memory_gib"] > 0
    assert {"python", "torch", "numpy"} <= set(document["versions"])
    assert document["date"].endswith("+00:00")


def test_folder_that_is_missing_is_said_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no folder"):
        Report(Screen(), "some", {}, tmp_path / "away" / "found.json")


def test_numbers_that_json_cannot_hold_become_none() -> None:
    assert finite({"a": [math.nan, 1.5, (math.inf, "x")]}) == {"a": [None, 1.5, [None, "x"]]}
    assert json.dumps(finite(machine()), allow_nan=False)


def test_quantiles_are_in_milliseconds() -> None:
    found = quantiles_ms([n / 1000 for n in range(1, 101)])
    assert found["n"] == 100
    assert found["median_ms"] == pytest.approx(50.5)
    assert found["median_ms"] < found["p95_ms"] < found["p99_ms"] <= 100


def test_ratio_is_paired_and_the_same_both_ways() -> None:
    above, below = [2.0, 8.0, 4.5, 4.0], [1.0, 2.0, 1.5, 2.0]
    there, back = ratio(above, below), ratio(below, above)
    assert there["ratio"] == pytest.approx(1 / back["ratio"])
    assert there["low"] <= there["ratio"] <= there["high"]
    assert there["n"] == 4


def test_same_ratio_in_every_round_leaves_no_doubt() -> None:
    found = ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert found["low"] == pytest.approx(2.0)
    assert found["high"] == pytest.approx(2.0)


def test_one_round_has_no_interval() -> None:
    found = ratio([3.0], [2.0])
    assert finite(found) == {"ratio": pytest.approx(1.5), "low": None, "high": None, "n": 1}
    assert ratio_text(found) == "1.50"
