"""`bench memory`, on the real store."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bench.main import app
from bench.memory.workload import TIGHTEST, WIDEST, Workload


def test_store_is_measured_at_each_size_and_removed(tmp_path: Path) -> None:
    folder = tmp_path / "room"
    folder.mkdir()
    options = ["--sizes", "100,200", "--queries", "20", "--batch", "30", "--folder", str(folder)]
    options += ["--json", "--output", str(tmp_path / "found.json")]
    ran = CliRunner().invoke(app, ["memory", *options])
    assert ran.exit_code == 0, ran.output
    document = json.loads(ran.stdout)
    assert document == json.loads((tmp_path / "found.json").read_text())
    rows = document["results"]["sizes"]
    assert [row["episodes"] for row in rows] == [100, 200]
    assert [row["inserted"] for row in rows] == [100, 100]
    for row in rows:
        assert row["insert_per_s"] > 0
        for found in (row["grown"], row["reopened"]):
            for times in (found, found["scan"]):
                assert times["n"] == 20
                assert 0 < times["median_ms"] <= times["p95_ms"] <= times["p99_ms"]
            ratio = found["p95_ms"] / found["scan"]["p95_ms"]
            assert found["p95_of_scan"] == pytest.approx(ratio, abs=0.01, rel=0.01)
            assert found["recalled_mean"] > 0  # clustered: queries find something above the floor
            assert found["exact"] == 1.0  # Edge scans too at this size
    assert list(folder.iterdir()) == []


def test_table_is_plain_in_a_pipe(tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["memory", "--sizes", "20", "--queries", "5", "--folder", str(tmp_path)])
    assert ran.exit_code == 0, ran.output
    assert "\x1b" not in ran.stdout
    assert "inserts/s" in ran.stdout


def test_keys_are_of_norm_one_and_as_close_as_real_ones() -> None:
    workload = Workload("space", 576, 2, seed=3)
    keys = workload.keys(600)
    assert np.allclose(np.linalg.norm(keys, axis=1), 1, atol=1e-5)
    cosines = (keys @ keys.T)[np.triu_indices(len(keys), 1)]
    near = cosines[cosines > 0.4]
    assert WIDEST - 0.1 < near.mean() < TIGHTEST
    assert abs(float(np.median(cosines[cosines < 0.4]))) < 0.05


def test_workload_is_seeded() -> None:
    first, again, other = (Workload("space", 8, 2, seed).keys(5) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_episodes_come_in_batches_of_what_stores_take() -> None:
    batches = list(Workload("space", 8, 2, seed=0).episodes(70, batch=32))
    assert [len(batch) for batch in batches] == [32, 32, 6]
    for episode in batches[0]:
        episode.check(2, 8)
