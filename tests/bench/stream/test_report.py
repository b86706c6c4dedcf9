"""The page and its pictures."""

import sys
from pathlib import Path
from typing import Any

import pytest

from bench.stream.report import write_report
from tests.bench.stream.test_summary import row

HEAD: dict[str, Any] = {
    "date": "2026-01-01",
    "hardware": {"cpu": "chip", "cores": 2, "memory_gib": 4, "gpus": [], "load_average": [0.5]},
    "settings": {"model": "small", "data": "questions.jsonl", "max_tokens": 24, "instruction": ""},
}


def rows() -> list[dict[str, Any]]:
    found = [row("plain", str(n), n < 2) for n in range(4)]
    found += [row("majority", str(n), n < 2, any_correct=True) for n in range(4)]
    for night in ("night-1", "night-2"):
        found += [row("low", str(n), n < 3, stage=night) for n in range(4)]
    for n in range(6):
        day = {"seed": 0, "stage": "day-1", "set": "stream", "arm": "served", "question": f"d{n}"}
        found.append(day | ({"remembered": {"reward": n / 6, "correct": n > 3, "tokens": 5}} if n else {}))
    night = {"seed": 0, "stage": "night-1", "arm": "night", "question": "", "state": "refused"}
    night |= {"version": "v1", "episodes": 9, "wall_s": 1.0, "message": "no better|than\nplain"}
    return [*found, night, night | {"stage": "night-2", "labels": 8, "labels_right": 6}]


def pictures(page: str) -> list[str]:
    return [line.partition("(")[2].rstrip(")") for line in page.splitlines() if line.startswith("![")]


def test_page_has_a_row_per_arm_and_stage_and_names_its_pictures(tmp_path: Path) -> None:
    write_report(tmp_path, HEAD, rows())
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| start | plain | 4 | 50.0% (" in page
    assert "| start | majority (any right 100.0%) | 4 |" in page
    assert "| night-2 | low | 4 | 75.0% (" in page
    assert "+25.0% (" in page
    assert "| day-1 | 6 | 5 | 40% | 5.0 | 1.00 |" in page
    assert "| night-1 | refused | v1 | 9 |  |  | 1.0 |" in page, "a build that did not tell"
    assert "| night-2 | refused | v1 | 9 | 8 | 75% | 1.0 |" in page
    assert "paid back after answers |\n|---|---|---|---|\n\n" in page, "nobody counted"
    names = ["accuracy-by-night.png", "accuracy-against-compute.png", "reward-calibration.png"]
    assert pictures(page) == names
    for name in pictures(page):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_page_says_what_days_and_nights_have_computed(tmp_path: Path) -> None:
    counted = [row("majority", str(n), n < 2, forward=40) for n in range(4)]
    spent = {"served": 100, "night": 400}
    counted += [one | {"spent": spent.get(one["arm"])} for one in rows() if one["arm"] != "majority"]
    write_report(tmp_path, HEAD, counted)
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| night-1 | 1000 | 50 | 50 |" in page
    assert "| night-2 | 1400 | 70 | 70 |" in page


def test_each_set_of_questions_has_a_panel_and_each_arm_one_colour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    drawn: list[Any] = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    other = [one | {"arm": f"{one['arm']}@hard_ones"} for one in rows() if "correct" in one]
    write_report(tmp_path, HEAD, [*rows(), *other])
    for figure in drawn[:2]:
        assert [axes.get_title() for axes in figure.axes] == ["stream", "hard ones"]
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == ["plain", "majority", "low"]
        colours = [{line.get_label(): line.get_color() for line in axes.get_lines()} for axes in figure.axes]
        assert colours[0] == colours[1]
    nights = [text.get_text() for text in drawn[1].axes[0].texts]
    assert [text for text in nights if text] == ["1", "2"]


def test_text_of_others_breaks_no_table(tmp_path: Path) -> None:
    write_report(tmp_path, HEAD, rows())
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| no better\\|than plain |" in page


def test_page_comes_without_matplotlib_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_report(tmp_path, HEAD, rows())
    assert pictures((tmp_path / "report.md").read_text(encoding="utf-8")) == []
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]


@pytest.mark.parametrize("count", [0, 1])
def test_hardly_any_rows_make_a_page(tmp_path: Path, count: int) -> None:
    write_report(tmp_path, HEAD, rows()[:count])
    assert (tmp_path / "report.md").exists()
