"""A small stream on the scripted engine."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bench.stream.loop import Loop, open_loop
from bench.stream.plan import Plan
from cli.demonstration.stream import Item
from config.settings import Settings
from tests.scripted_engine import ScriptedEngine
from tests.worker.conftest import one_thread

__all__ = ["one_thread"]  # autouse, here as there

TOPICS = ("apples", "trains", "poems")


def items_of(count: int) -> list[Item]:
    """Return questions of three topics with numbers as answers."""
    return [Item(f"{TOPICS[n % 3]} number {n}", n) for n in range(count)]


@pytest.fixture(autouse=True)
def nights_learn_from_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A day of twelve questions has four of each topic."""
    monkeypatch.setattr("worker.dataset.FEWEST", 4)


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def plan() -> Plan:
    return Plan(
        model="scripted", data="questions.jsonl", day=12, held_out=4, nights=1, max_tokens=24, samples=5
    )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings under which scripted answers are worth remembering, and better than the unsteered ones."""
    return Settings(
        low_recalls=True,
        _env_file=None,
        data_dir=tmp_path / "data",
        rewards="confidence=1",
        remember_threshold=0.0,
        night_min_reward=0.0,
        night_min_episodes=4,
        night_steps=4,
        night_episodes=0,
        explore_rollouts=8,
        high_steps=2,
    )


@pytest.fixture
async def loop(engine: ScriptedEngine, settings: Settings, plan: Plan) -> AsyncIterator[Loop]:
    async with open_loop(engine, settings, plan) as opened:
        yield opened
