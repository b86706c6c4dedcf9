"""Every way to answer, on the scripted engine."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from bench.asking import render
from bench.stream.arms import ARMS
from bench.stream.loop import Loop, open_loop
from bench.stream.plan import Plan
from bench.stream.reply import Reply
from cli.demonstration.stream import Item
from config.settings import Settings
from memory.episode import Episode
from model.engine import Decoding
from server.steering.prompt import RenderedPrompt
from tests.bench.stream.conftest import items_of
from tests.scripted_engine import CLOSE, ScriptedEngine
from tests.tables import row

SEED = 5


def prompts_of(loop: Loop, count: int = 3) -> list[RenderedPrompt]:
    return [loop.render(item) for item in items_of(count)]


async def remember(loop: Loop, progress: Sequence[float] = (0.5, 0.7), *, earned: bool = True) -> None:
    """Remember latents that help with questions about apples, oldest first, found under the active prior."""
    engine = cast(ScriptedEngine, loop.engine)
    neutral = engine.neutral_latent()
    for number, share in enumerate(progress):
        prompt = loop.render(Item(f"apples remembered {number}", 0))
        latent = neutral + share * (engine.best_latent(prompt.token_ids) - neutral)
        episode = Episode(
            space=engine.space.id,
            key=(await engine.keys([prompt.token_ids]))[0].numpy(),
            latent=latent.numpy(),
            reward=0.9,
            signals={},
            prompt_token_ids=prompt.token_ids,
            answer_token_ids=(1, CLOSE),
            prompt_text=prompt.text,
            answer_text="",
            latent_earned=earned,
            prior_version=loop.gateway.registry.active(),
        )
        loop.gateway.store.add([episode])


async def publish(loop: Loop) -> None:
    """Make a prior active that answers questions about apples well."""
    prompt = loop.render(Item("apples", 0))
    engine = cast(ScriptedEngine, loop.engine)
    key = (await engine.keys([prompt.token_ids])).numpy()
    registry = loop.gateway.registry
    version = registry.publish([row(engine.best_latent(prompt.token_ids), key)], {})
    registry.activate(version, pinned=True)
    await loop.gateway.prior.refresh()


@pytest.mark.parametrize("learned", [False, True])
async def test_every_arm_answers_and_pays_at_least_for_its_answer(loop: Loop, learned: bool) -> None:
    if learned:
        await publish(loop)
        await remember(loop)
    prompts = prompts_of(loop)
    for name, arm in ARMS.items():
        if name == "latentseek":  # needs weights: test_latentseek.py
            continue
        replies = await arm.answer(loop, prompts, SEED)
        assert len(replies) == len(prompts), name
        for prompt, reply in zip(prompts, replies, strict=True):
            assert reply.text, name
            assert reply.finished, name
            assert 0 < reply.tokens <= reply.generated, name
            assert reply.generated + len(prompt.token_ids) <= reply.forward, name
        again = await arm.answer(loop, prompts, SEED)
        assert [reply.text for reply in replies] == [reply.text for reply in again], name
    assert len(list(loop.gateway.store.scroll())) == (2 if learned else 0)  # answering leaves nothing behind


async def test_steered_arms_use_what_they_are_named_for(loop: Loop) -> None:
    await publish(loop)
    await remember(loop)
    prompts = prompts_of(loop, 1)
    (plain,) = await ARMS["plain"].answer(loop, prompts, SEED)
    assert plain.text.startswith("Perhaps ")
    for name, mode in (("low", "recall+prior"), ("recall", "recall")):
        (reply,) = await ARMS[name].answer(loop, prompts, SEED)
        assert reply.facts["mode"] == mode
        assert reply.text.startswith("Answer: ")
        assert reply.forward - reply.tokens == plain.forward - plain.tokens + loop.engine.space.length


async def test_random_has_the_norms_of_what_low_injects(loop: Loop, engine: ScriptedEngine) -> None:
    await remember(loop)
    prompts = prompts_of(loop, 2)  # one that low knows, one that it answers plainly
    injected = await injected_by(engine, loop, "low", prompts)
    drawn = await injected_by(engine, loop, "random", prompts)
    assert injected[0] is not None
    assert injected[1] is None
    for latent, like in zip(drawn, (injected[0], engine.neutral_latent()), strict=True):
        assert latent is not None
        assert torch.allclose(latent.norm(dim=1), like.norm(dim=1), rtol=1e-4)
        assert abs(float(torch.cosine_similarity(latent.flatten(), like.flatten(), dim=0))) < 0.4


async def injected_by(
    engine: ScriptedEngine, loop: Loop, name: str, prompts: list[RenderedPrompt]
) -> tuple[torch.Tensor | None, ...]:
    """Return what went into the prompts of an arm's last call."""
    await ARMS[name].answer(loop, prompts, SEED)
    return next(call.latents for call in reversed(engine.calls) if call.method == "generate")


async def test_walk_stays_within_the_trust_region(loop: Loop, engine: ScriptedEngine) -> None:
    start = engine.neutral_latent()
    for latent in await injected_by(engine, loop, "walk", prompts_of(loop)):
        assert latent is not None
        assert 0 < float((latent - start).norm()) <= float(start.norm()) * 1.001


async def test_mean_is_of_latents_that_earned_their_place_alone(loop: Loop, engine: ScriptedEngine) -> None:
    await remember(loop, (0.2, 0.4, 0.9))
    await remember(loop, (5.0,), earned=False)
    latents = [np.asarray(found.latent, dtype=np.float32) for found in earned(loop)]
    assert len(latents) == 3
    (mean,) = await injected_by(engine, loop, "mean", prompts_of(loop, 1))
    assert mean is not None
    assert np.allclose(mean.numpy(), np.mean(latents, axis=0), atol=2e-3)


def earned(loop: Loop) -> list[Episode]:
    found = [episode for episode in loop.gateway.store.scroll() if episode.latent_earned]
    return sorted(found, key=lambda episode: episode.created_at)


async def answering(texts: Sequence[str], settings: Settings, plan: Plan, name: str, folder: Path) -> Reply:
    """Return an arm's reply when the model's answers are `texts`, in turns."""
    turn = count()

    def script(prompt: str, latent: torch.Tensor | None, decoding: Decoding) -> str:
        return "3" if decoding.max_tokens == 1 else texts[next(turn) % len(texts)]

    engine = ScriptedEngine(answer=script)
    own = settings.model_copy(update={"data_dir": folder})
    async with open_loop(engine, own, replace(plan, samples=len(texts))) as loop:
        (reply,) = await ARMS[name].answer(loop, prompts_of(loop, 1), SEED)
    return reply


async def test_majority_takes_the_most_frequent_finished_answer(
    settings: Settings, plan: Plan, tmp_path: Path
) -> None:
    long = "of many, many words that are not over at all, 9"
    texts = ["so 4", long, "I say 7", long, "it is 7", long, "3"]
    reply = await answering(texts, settings, plan, "majority", tmp_path)
    assert reply.text == "I say 7"
    assert [sample.vote for sample in reply.samples] == ["4", None, "7", None, "7", None, "3"]


async def test_majority_counts_answers_in_the_form_asked_for(
    settings: Settings, plan: Plan, tmp_path: Path
) -> None:
    boxed = replace(plan, instruction="Put it in \\boxed{}.")
    texts = ["so 4", "it is 4", "\\boxed{7}", "\\boxed{7} then", "\\boxed{3}"]
    reply = await answering(texts, settings, boxed, "majority", tmp_path)
    assert reply.text == "\\boxed{7}"


async def test_majority_without_any_vote_still_answers(
    settings: Settings, plan: Plan, tmp_path: Path
) -> None:
    texts = ["of many, many words that are not over at all, 9"] * 3
    reply = await answering(texts, settings, plan, "majority", tmp_path)
    assert reply.text == texts[0][:24]
    assert not reply.finished


async def test_best_of_takes_what_the_reward_likes_best(
    settings: Settings, plan: Plan, tmp_path: Path
) -> None:
    agreeing = settings.model_copy(update={"rewards": "consistency=1"})
    reply = await answering(["1", "2", "3", "2", "5"], agreeing, plan, "best-of", tmp_path)
    assert reply.text == "2"


def test_box_is_a_rule_where_the_request_asks_for_one(engine: ScriptedEngine) -> None:
    item = Item("How many?", 7, ())
    boxed = render(engine, item, instruction="End with \\boxed{}.", system="Be brief.", max_tokens=9)
    assert boxed.format_rules == {"boxed": True}
    assert boxed.question == "How many?\n\nEnd with \\boxed{}."
    assert boxed.text.startswith("system\nBe brief.")
    bare = render(engine, item, instruction="", system="", max_tokens=9)
    assert bare.format_rules == {}
    assert bare.text.startswith("user\nHow many?")
