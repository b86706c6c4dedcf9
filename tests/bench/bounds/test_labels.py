"""Labels of a night, and right ones in their place."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch

from bench.bounds.labels import of_night, with_gold
from bench.stream.loop import Loop, open_loop
from bench.stream.plan import Plan
from bench.stream.questions import Scorer
from cli.demonstration.stream import Item
from cli.failure import CommandError
from config.settings import Settings
from model.engine import Decoding
from tests.bench.bounds.remembering import remember
from tests.scripted_engine import ScriptedEngine

ITEMS = [Item(f"apples number {n}", n % 2) for n in range(12)]
SCORER = Scorer(ITEMS, box=False)


@pytest.fixture(autouse=True)
def nights_learn_from_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.dataset.FEWEST", 4)


def samples(prompt: str, latent: torch.Tensor | None, decoding: Decoding) -> str:
    """Answer 1 to every question, but for the tenth, to which nothing right is ever said."""
    return "it is 5" if "number 10" in prompt else f"it is {decoding.seed and 1}"


@pytest.fixture
async def loop(tmp_path: Path) -> AsyncIterator[Loop]:
    engine = ScriptedEngine(answer=samples)
    settings = Settings(
        _env_file=None, data_dir=tmp_path / "data", night_min_episodes=4, night_min_reward=0.0
    )
    plan = Plan(model="scripted", data="", max_tokens=24)
    async with open_loop(engine, settings, plan) as opened:
        prompts = [opened.render(item) for item in ITEMS]
        answers = [(engine.answer_tokens("it is 0"), "it is 0")] * len(prompts)
        await remember(opened, engine, prompts, answers, signals={}, max_tokens=24)
        yield opened


async def test_a_nights_labels_are_what_it_would_learn_and_are_checked_afterwards(loop: Loop) -> None:
    night, known = await of_night(loop, ITEMS[:8], SCORER)
    assert len(night.examples) == 8
    assert {known[example.id].question for example in night.examples} == {i.question for i in ITEMS[:8]}
    assert night.right_share == (4, 8)


async def test_wrong_labels_give_way_to_right_answers_of_the_models_own(loop: Loop) -> None:
    night, known = await of_night(loop, ITEMS, SCORER)
    latents = torch.stack([loop.engine.neutral_latent()] * night.dataset.clusters)
    gold = await with_gold(loop.engine, night, known, SCORER, latents, 3)
    assert {example.answer for example in night.examples} == {"it is 0"}
    told = {known[example.id].question: example for example in gold.examples}
    assert all(SCORER.correct(example.answer, known[example.id]) for example in gold.examples)
    assert gold.right_share == (len(told), len(told))
    assert set(told) == {item.question for item in ITEMS}
    odd = told["apples number 1"]
    assert loop.engine.decode(odd.label.answers[0]) == odd.answer == "it is 1"


async def test_a_question_without_a_right_answer_is_left_out(loop: Loop) -> None:
    other = [Item(item.question, 7 if item.question.endswith("10") else item.answer) for item in ITEMS]
    night, known = await of_night(loop, other, SCORER)
    latents = torch.stack([loop.engine.neutral_latent()] * night.dataset.clusters)
    gold = await with_gold(loop.engine, night, known, SCORER, latents, 3)
    assert "apples number 10" not in {known[example.id].question for example in gold.examples}
    assert len(gold.examples) == 11


async def test_a_night_that_had_nothing_to_learn_from_is_said(loop: Loop) -> None:
    with pytest.raises(CommandError, match="nothing to learn from"):
        await of_night(loop, ITEMS[:2], SCORER)
