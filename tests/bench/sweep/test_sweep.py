"""Runs that differ in one option, read from their folders."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench.main import app
from bench.sweep.points import read
from cli.failure import CommandError
from tests.bench.stream.test_summary import row

PLAN: dict[str, Any] = {
    "model": "small",
    "day": 32,
    "nights": 2,
    "digests": ["1", "2"],
    "settings": {"recall_k": "4"},
}


def run(folder: Path, rows: list[dict[str, Any]], **plan: Any) -> Path:
    folder.mkdir()
    head = {"benchmark": "stream", "settings": PLAN | plan}
    (folder / "run.json").write_text(json.dumps(head), encoding="utf-8")
    (folder / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return folder


def answers(right: int, stage: str = "night-1") -> list[dict[str, Any]]:
    return [row("low", f"q{n}", n < right, stage=stage) for n in range(8)]


def night(state: str) -> dict[str, Any]:
    return {"seed": 0, "stage": "night-1", "arm": "night", "question": "", "state": state}


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    plain = [row("plain", f"q{n}", n < 2) for n in range(8)]
    return [
        run(tmp_path / "k16", [*plain, *answers(6), night("promoted")], settings={"recall_k": "16"}),
        run(tmp_path / "k4", [*plain, *answers(4), *answers(5, "night-2"), night("refused")]),
        run(tmp_path / "k8", [*plain, *answers(3), night("refused")], settings={"recall_k": "8"}, nights=1),
    ]


def test_values_stand_in_order(folders: list[Path]) -> None:
    found = read(folders)
    assert (found.option, found.values) == ("recall_k", ("4", "8", "16"))
    assert found.nights == (("refused",), ("refused",), ("promoted",))


def test_arms_are_compared_at_the_last_stage_that_all_runs_have(folders: list[Path]) -> None:
    points = read(folders).points
    low = [point for point in points if point.score.arm == "low"]
    assert [(point.score.stage, point.score.accuracy.mean) for point in low] == [
        ("night-1", 4 / 8),
        ("night-1", 3 / 8),
        ("night-1", 6 / 8),
    ]
    against = [point.against_first for point in low]
    assert against[0] is None
    assert against[2] is not None
    assert against[2].mean == pytest.approx(2 / 8)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"day": 16, "settings": {"recall_k": "2"}}, "differ in day, recall_k"),
        ({}, "differ in nothing"),
        ({"digests": ["3", "2"]}, "differ in their data"),
        ({"skew": "", "settings": {"recall_k": "4", "night_batch": "4"}}, "differ in nothing"),
    ],
)
def test_runs_that_differ_otherwise_are_refused(folders: list[Path], plan: Any, message: str) -> None:
    other = run(folders[0].parent / "other", answers(1), **plan)
    with pytest.raises(CommandError, match=message):
        read([folders[1], other])


def test_option_that_an_earlier_build_did_not_have_was_at_its_default(folders: list[Path]) -> None:
    later = run(folders[0].parent / "later", answers(1), skew="Sports=0.7", settings={})
    found = read([folders[1], later])
    assert (found.option, found.values) == ("skew", ("", "Sports=0.7"))


def test_folder_without_a_run_is_named(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=f"{tmp_path} holds no run"):
        read([folders[0], tmp_path])


def test_command_shows_and_draws(folders: list[Path], tmp_path: Path) -> None:
    picture = tmp_path / "sweep.png"
    arguments = ["sweep", *map(str, folders), "--json", "--picture", str(picture)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["option"] == "recall_k"
    assert [point["score"]["accuracy"]["mean"] for point in document["points"][3:]] == [0.5, 0.375, 0.75]
    assert picture.read_bytes().startswith(b"\x89PNG")
