"""`bench rewards`, on the scripted engine."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bench.main import app
from cli.failure import USAGE, CommandError
from tests.scripted_engine import ScriptedEngine


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    """The engine that the command opens."""
    found = ScriptedEngine()

    @asynccontextmanager
    async def opened(*_: Any) -> AsyncIterator[ScriptedEngine]:
        yield found

    monkeypatch.setattr("bench.rewards.command.open_engine", opened)
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    rows = [{"question": f"trains number {n}", "answer": "red", "choices": ["red", "blue"]} for n in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(data: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["rewards", "--data", str(data), "--samples", "4", *options])


def test_document_pictures_and_rows(engine: ScriptedEngine, data: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "found", tmp_path / "found.json"
    ran = run(data, "--folder", str(folder), "--json", "--output", str(output), "--limit", "6")
    assert ran.exit_code == 0, ran.output
    document = json.loads(ran.stdout)
    assert document == json.loads(output.read_text())
    assert document["benchmark"] == "rewards"
    results = document["results"]
    assert (results["questions"], results["answers"]) == (6, 30)
    assert set(results["signals"]) == {"consistency", "confidence", "format"}
    assert {path.name for path in folder.iterdir()} == {"run.json", "rows.jsonl", "reliability.png"}

    calls = len(engine.calls)
    again = run(data, "--folder", str(folder), "--json", "--limit", "6")
    assert json.loads(again.stdout)["results"] == results
    assert len(engine.calls) == calls  # everything was there
    more = run(data, "--folder", str(folder), "--json", "--limit", "9")
    assert json.loads(more.stdout)["results"]["questions"] == 9
    assert len((folder / "rows.jsonl").read_text().splitlines()) == 9

    other = run(data, "--folder", str(folder), "--max-tokens", "5")
    assert isinstance(other.exception, CommandError)
    assert other.exception.message.endswith("other options: max_tokens")
    data.write_text("".join(data.read_text().splitlines(keepends=True)[:8]))
    shorter = run(data, "--folder", str(folder), "--limit", "6")
    assert isinstance(shorter.exception, CommandError)
    assert shorter.exception.message.endswith("other options: data_digest")


def test_signals_of_the_setting_are_measured_too(engine: ScriptedEngine, data: Path) -> None:
    options = ["--signals", "format", "--setting", "rewards=confidence=1", "--json", "--limit", "2"]
    ran = run(data, *options)
    assert ran.exit_code == 0, ran.output
    results = json.loads(ran.stdout)["results"]
    assert list(results["signals"]) == ["format", "confidence"]
    assert results["quality"]["weights"] == {"confidence": 1.0}


def test_tables_are_plain_in_a_pipe(engine: ScriptedEngine, data: Path) -> None:
    ran = run(data, "--limit", "3")
    assert ran.exit_code == 0, ran.output
    assert "\x1b" not in ran.stdout
    assert "AUC within" in ran.stdout


@pytest.mark.parametrize(
    "options",
    [
        ("--signals", "luck"),
        ("--signals", "verifier"),
        ("--setting", "rewards=luck=1"),
        ("--setting", "no_such=1"),
        ("--data", "missing.jsonl"),
    ],
)
def test_wrong_options_are_said_before_anything_runs(
    engine: ScriptedEngine, data: Path, options: tuple[str, ...]
) -> None:
    ran = run(data, *options)
    assert isinstance(ran.exception, CommandError)
    assert ran.exception.exit_code == USAGE
    assert engine.calls == []
