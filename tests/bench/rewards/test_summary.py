"""What a measurement reports, on rows made by hand."""

import json
import sys
from pathlib import Path

import pytest

from bench.result import finite
from bench.rewards.show import draw, show
from bench.rewards.summary import Answers, summarise
from cli.screen import Screen
from tests.bench.rewards.conftest import row

NAMES = ["format", "confidence"]
ROWS = [
    row(
        "one",
        [
            ("5", False, {"format": 0.2, "confidence": 0.9}),
            ("1", True, {"format": 0.8, "confidence": 0.7}),
            ("7", False, {"format": 0.4, "confidence": 0.2}),
        ],
    ),
    row(
        "two",
        [
            ("1", True, {"format": 1.0, "confidence": 0.8}),
            ("2", False, {"confidence": 0.95}),
            ("1", True, {"format": 0.6, "confidence": 0.6}),
        ],
        cut=(1,),
    ),
]


def results(threshold: float = 0.5) -> dict[str, object]:
    return summarise(ROWS, {"format": 0.5, "confidence": 0.5}, NAMES, threshold)


def test_threshold_counts_the_answers_that_reach_it() -> None:
    found = results(0.55)["threshold"]
    # Q: 0.55, 0.75, 0.3; 0.9, 0.95 (format does not apply), 0.6.
    assert isinstance(found, dict)
    assert found["answers"] == 5
    assert found["right"]["mean"] == pytest.approx(3 / 5)


def test_confident_but_wrong_answers_are_the_highest_of_each_question() -> None:
    cases = results()["confident_but_wrong"]
    assert isinstance(cases, list)
    assert [(case["question"], case["answer"], case["quality"]) for case in cases] == [
        ("two", "2", 0.95),
        ("one", "5", 0.55),
    ]
    assert cases[0]["signals"] == {"confidence": 0.95}


def test_compute_is_per_answer() -> None:
    signals = results()["signals"]
    assert isinstance(signals, dict)
    assert signals["format"]["generated_per_answer"] == pytest.approx(16 / 6)
    assert signals["format"]["forward_per_answer"] == pytest.approx(80 / 6)
    assert (signals["format"]["applies"], signals["confidence"]["applies"]) == (5, 6)


def test_tables_are_shown_with_and_without_results(capsys: pytest.CaptureFixture[str]) -> None:
    show(Screen(), results())
    text = capsys.readouterr().out
    assert "best by format" in text
    assert "asked:    two" in text
    right = [row("q", [("1", True, {}), ("1", True, {})])]
    show(Screen(), summarise(right, {"format": 1.0}, NAMES, 0.5))
    assert "confident but wrong" not in capsys.readouterr().out


def test_document_is_json_also_of_one_question() -> None:
    json.dumps(finite(summarise(ROWS[:1], {"format": 1.0}, NAMES, 0.5)), allow_nan=False)


def test_picture_comes_with_matplotlib_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, path = Answers.of(ROWS, NAMES), tmp_path / "reliability.png"
    assert draw(path, answers, answers.quality({"format": 1.0}))
    assert path.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not draw(path, answers, answers.quality({"format": 1.0}))
