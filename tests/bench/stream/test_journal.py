"""Rows outlive a kill."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.machine import build
from bench.stream.journal import Journal, builds, read_rows, several


def row(question: str, **more: Any) -> dict[str, Any]:
    return {"seed": 0, "stage": "start", "arm": "plain", "question": question, **more}


def test_rows_are_there_again_and_known(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    Journal(path).add([row("Wie viele Äpfel?", text="zwei\nZeilen"), row("two")])
    again = Journal(path)
    assert [found["question"] for found in again.rows] == ["Wie viele Äpfel?", "two"]
    assert again.has(0, "start", "plain", "two")
    for other in ((1, "start", "plain", "two"), (0, "night-1", "plain", "two"), (0, "start", "low", "two")):
        assert not again.has(*other)


def test_cut_off_last_line_is_dropped_and_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    Journal(path).add([row("one"), row("two")])
    path.write_bytes(path.read_bytes()[:-9])
    again = Journal(path)
    assert again.has(0, "start", "plain", "one")
    assert not again.has(0, "start", "plain", "two")
    again.add([row("two", text="anew")])
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines == [one | {"build": build()} for one in (row("one"), row("two", text="anew"))]


def test_line_that_lost_only_its_end_is_dropped_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    Journal(path).add([row("one")])
    path.write_bytes(path.read_bytes()[:-1])
    assert Journal(path).rows == []
    assert path.read_bytes() == b""


def test_text_that_is_no_utf8_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    Journal(path).add([row("half a pair \ud83d")])
    assert Journal(path).has(0, "start", "plain", "half a pair \ud83d")


def test_rows_of_other_code_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "rows.jsonl")
    journal.add([row("one"), row("two")])
    assert (builds(journal.rows), several(builds(journal.rows))) == ((build(),), "")
    monkeypatch.setattr("bench.stream.journal.build", lambda: "another")
    again = Journal(tmp_path / "rows.jsonl")
    again.add([row("three")])
    assert several(builds(again.rows)) == f"MADE BY 2 BUILDS OF THE CODE: {build()}, another"
    assert several(builds(read_rows(tmp_path / "rows.jsonl"))) == several(builds(again.rows))
