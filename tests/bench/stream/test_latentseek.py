"""The published search as an arm, on random weights."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch

from bench.latentseek import STEPS, Opening
from bench.stream.latentseek import VOTES, latentseek
from bench.stream.loop import Loop, open_loop
from bench.stream.plan import Plan
from config.settings import Settings
from model.transformers_engine import TransformersEngine
from tests.bench.stream.conftest import items_of
from tests.worker.conftest import one_thread

__all__ = ["one_thread"]  # autouse, here as there


@pytest.fixture
async def weights(tiny_model: str, tmp_path: Path) -> AsyncIterator[Loop]:
    """A loop around a model whose answers never agree, so that no reward is high."""
    engine = TransformersEngine(tiny_model, length=4, placement="user_turn_end", max_model_len=256)
    settings = Settings(_env_file=None, model=tiny_model, data_dir=tmp_path, latent_length=4)
    async with open_loop(engine, settings, Plan(model=tiny_model, data="", max_tokens=12)) as opened:
        yield opened
    await engine.close()


def test_what_is_not_rewarded_gives_way() -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 20, bias=False).requires_grad_(False)
    opening = Opening(head, torch.randn(3, 8))
    before = opening.tokens()
    opening.step(0.0)
    assert opening.tokens() == before
    for _ in range(60):
        opening.step(-1.0)
    assert opening.tokens() != before


async def test_it_takes_its_steps_and_pays_for_votes_and_each_answer(weights: Loop) -> None:
    prompts = [weights.render(item) for item in items_of(2)]
    replies = await latentseek(weights, prompts, 0)
    for prompt, reply in zip(prompts, replies, strict=True):
        assert reply.facts["steps"] == STEPS
        assert 0 < reply.tokens <= 12
        assert VOTES + STEPS + 1 <= reply.generated <= 12 * (VOTES + STEPS + 1)
        assert reply.forward == reply.generated + len(prompt.token_ids)
    again = await latentseek(weights, prompts, 0)
    assert [reply.text for reply in again] == [reply.text for reply in replies]


async def test_the_first_answer_stays_where_its_reward_is_enough(
    weights: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.stream.latentseek.ENOUGH", -2.0)
    (plain,) = await weights.ask("plain", items_of(1), 0)
    (reply,) = await weights.ask("latentseek", items_of(1), 0)
    assert (reply.facts["steps"], reply.text) == (0, plain.text)
