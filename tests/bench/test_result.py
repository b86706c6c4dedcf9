"""What every benchmark writes."""

import json
import math
from pathlib import Path

import pytest

from bench.machine import machine
from bench.result import Report, finite
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
