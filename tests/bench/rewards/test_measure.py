"""Measuring on the scripted engine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.rewards.measure import Measurement
from bench.rewards.summary import Answers
from bench.stream.journal import Journal
from bench.stream.questions import Scorer as Labels
from cli.demonstration.stream import Item
from cli.failure import CommandError
from model.engine import Generation
from server.steering.prompt import RenderedPrompt
from server.steering.rewards.reward import SignalUnavailableError
from server.steering.rewards.scorer import Scorer, parse_weights
from tests.scripted_engine import ScriptedEngine

SIGNALS = "consistency=1,confidence=1,format=1"
ITEMS = [
    *(Item(f"apples number {n}", n) for n in range(5)),
    *(Item(f"trains number {n}", "red", ("red", "blue")) for n in range(5)),
]


def measurement(engine: ScriptedEngine, folder: Path, scorer: Scorer | None = None) -> Measurement:
    return Measurement(
        engine=engine,
        scorer=scorer or Scorer.of(SIGNALS),
        labels=Labels(ITEMS, box=False),
        journal=Journal(folder / "rows.jsonl"),
        count=4,
        seed=3,
        max_tokens=24,
        instruction="Answer in \\boxed{}.",
    )


def quiet(phase: str, done: int, total: int, message: str) -> None:
    """Show nothing."""


async def test_each_answer_has_its_signals_and_label(tmp_path: Path) -> None:
    rows = await measurement(ScriptedEngine(), tmp_path).run(ITEMS, quiet)
    assert [row["question"] for row in rows] == [item.question for item in ITEMS]
    labels = Labels(ITEMS, box=False)
    for row, item in zip(rows, ITEMS, strict=True):
        assert len(row["answers"]) == 5
        for answer in row["answers"]:
            assert answer["correct"] == labels.correct(answer["text"], item)
            assert {"confidence", "format"} <= set(answer["signals"])
    assert any("consistency" in answer["signals"] for row in rows for answer in row["answers"])


async def test_quality_is_that_of_the_server(tmp_path: Path) -> None:
    engine, weights = ScriptedEngine(), "confidence=0.5,consistency=0.7,format=0.2"
    scorer = Scorer.of(weights)
    seen: list[float] = []

    class Watched(Scorer):
        async def score(self, *given: Any, **named: Any) -> Any:
            seen.extend(scored.reward for scored in await scorer.score(*given, **named))
            return await super().score(*given, **named)

    watched = Watched(Scorer.of(SIGNALS).rewards)
    rows = await measurement(engine, tmp_path, watched).run(ITEMS, quiet)
    answers = Answers.of(rows, list(parse_weights(SIGNALS)))
    assert answers.quality(parse_weights(weights)).tolist() == pytest.approx(seen, abs=1e-5)


async def test_compute_is_what_the_engine_was_asked_for(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    rows = await measurement(engine, tmp_path).run(ITEMS[:3], quiet)
    for row in rows:
        spent = row["spent"]
        assert spent["consistency"]["generated"] == sum(one["tokens"] for one in row["answers"][1:])
        assert spent["consistency"]["forward"] > spent["consistency"]["generated"]
        assert spent["confidence"] == spent["format"] == {"generated": 0, "forward": 0}


async def test_killed_run_goes_on_with_the_same_samples(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = await measurement(ScriptedEngine(), tmp_path / "whole").run(ITEMS, quiet)
    path = tmp_path / "killed" / "rows.jsonl"
    await measurement(ScriptedEngine(), path.parent).run(ITEMS[:3], quiet)
    path.write_bytes(path.read_bytes()[:-5])  # in the middle of the third row
    assert await measurement(ScriptedEngine(), path.parent).run(ITEMS, quiet) == whole
    assert len(path.read_text().splitlines()) == len(ITEMS)
    engine = ScriptedEngine()
    assert await measurement(engine, path.parent).run(ITEMS[:4], quiet) == whole[:4]
    assert engine.calls == []


class Away:
    """A signal that cannot be had."""

    name = "verifier"

    async def score(
        self, prompt: RenderedPrompt, answers: Sequence[Generation], pool: Sequence[Generation]
    ) -> list[float | None]:
        raise SignalUnavailableError(self.name)


async def test_signal_that_cannot_be_had_ends_the_run_and_leaves_no_rows(tmp_path: Path) -> None:
    found = measurement(ScriptedEngine(), tmp_path, Scorer([(Away(), 1.0)]))
    with pytest.raises(CommandError, match="verifier"):
        await found.run(ITEMS, quiet)
    assert found.journal.rows == []
