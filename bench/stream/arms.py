"""The ways to answer that are compared.

Owns each arm: what goes into the prompt, how many answers are decoded, and what that cost. Knows no
labels, so that no arm can use them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from bench.asking import elected, samples, scorer_of, seed_of, vote
from bench.stream.latentseek import latentseek
from bench.stream.reply import Reply, Sample, reply_of, with_search
from model.engine import Generation, SteeredPrompt
from server.steering.outcome import Outcome
from server.steering.prompt import RenderedPrompt
from server.steering.search.evolution import NOISE
from server.steering.search.trust_region import RADIUS, project
from worker.measure import same_norms

if TYPE_CHECKING:
    from bench.stream.loop import Loop


Answer = Callable[["Loop", Sequence[RenderedPrompt], int], Awaitable[list[Reply]]]


@dataclass(frozen=True)
class Arm:
    """One way to answer."""

    answer: Answer
    when: Literal["once", "nightly"]
    """`once`: does not depend on memory or prior."""
    refines: bool = False
    """Costs so much that it answers fewer questions."""


async def decoded(
    loop: Loop,
    prompts: Sequence[RenderedPrompt],
    latents: Sequence[torch.Tensor | None],
    facts: Sequence[Mapping[str, Any]] | None = None,
) -> list[Reply]:
    """Decode greedily, one answer per prompt."""
    asked = [SteeredPrompt(p.token_ids, z) for p, z in zip(prompts, latents, strict=True)]
    answers = await loop.engine.generate(asked, [prompt.decoding for prompt in prompts])
    return [
        reply_of(answer, prompt, given)
        for answer, prompt, given in zip(answers, asked, facts or [{}] * len(asked), strict=True)
    ]


async def plain(loop: Loop, prompts: Sequence[RenderedPrompt], seed: int) -> list[Reply]:
    """The model alone, greedy."""
    return await decoded(loop, prompts, [None] * len(prompts))


async def majority(loop: Loop, prompts: Sequence[RenderedPrompt], seed: int) -> list[Reply]:
    """The answer that most of n samples give; those cut off or not in the form asked for have no vote."""
    replies = []
    for prompt, found in zip(prompts, await _samples(loop, prompts, loop.plan.samples, seed), strict=True):
        votes = [vote(prompt, one) for one in found]
        chosen = elected(votes)
        replies.append(_chosen(prompt, found, chosen or 0))
    return replies


async def best_of(loop: Loop, prompts: Sequence[RenderedPrompt], seed: int) -> list[Reply]:
    """The one of n samples that the server's own reward likes best."""
    scorer = scorer_of(loop.settings)
    replies = []
    for prompt, found in zip(prompts, await _samples(loop, prompts, loop.plan.samples, seed), strict=True):
        scores = [scored.reward for scored in await scorer.score(prompt, found, found)]
        chosen = int(np.argmax(scores))
        replies.append(_chosen(prompt, found, chosen))
    return replies


def steered(*, recalls: bool = False, **options: Any) -> Answer:
    """What the server serves under these options; with `recalls` also what nothing has proven."""

    async def answer(loop: Loop, prompts: Sequence[RenderedPrompt], seed: int) -> list[Reply]:
        named = {**options, **({"k": loop.settings.recall_k} if recalls else {})}
        outcomes = [await loop.steer(prompt, seed=seed_of(prompt, seed), **named) for prompt in prompts]
        facts = [{"mode": outcome.mode, "reason": outcome.reason} for outcome in outcomes]
        open_ = [at for at, outcome in enumerate(outcomes) if outcome.answer is None]
        decoded_now = await decoded(
            loop,
            [prompts[at] for at in open_],
            [outcomes[at].latent for at in open_],
            [facts[at] for at in open_],
        )
        replies = dict(zip(open_, decoded_now, strict=True))
        return [
            _spent(outcome, prompt, replies.get(at), facts[at])
            for at, (outcome, prompt) in enumerate(zip(outcomes, prompts, strict=True))
        ]

    return answer


def _spent(
    outcome: Outcome, prompt: RenderedPrompt, decoded: Reply | None, facts: Mapping[str, Any]
) -> Reply:
    if decoded is None:
        assert outcome.answer is not None
        decoded = reply_of(outcome.answer, SteeredPrompt(prompt.token_ids, outcome.latent), facts)
    return with_search(decoded, outcome.usage, len(prompt.token_ids), found=outcome.answer is not None)


async def random_latent(loop: Loop, prompts: Sequence[RenderedPrompt], seed: int) -> list[Reply]:
    """Random directions with the norms of what `low` injects; the neutral latent's where that is nothing."""
    neutral = loop.engine.neutral_latent()
    latents: list[torch.Tensor | None] = []
    for prompt in prompts:
        generator = torch.Generator().manual_seed(seed_of(prompt, seed))
        outcome = await loop.steer(prompt)
        like = neutral if outcome.latent is None else outcome.latent
        latents.append(same_norms(like, generator))
    return await decoded(loop, prompts, latents)


async def random_walk(loop: Loop, prompts: Sequence[RenderedPrompt], seed: int) -> list[Reply]:
    """As many steps as effort high, as long as evolution's, in random directions."""
    latents: list[torch.Tensor | None] = []
    for prompt in prompts:
        generator = torch.Generator().manual_seed(seed_of(prompt, seed))
        outcome = await loop.steer(prompt)
        start = loop.engine.neutral_latent() if outcome.latent is None else outcome.latent
        latent = start
        for _ in range(loop.settings.high_steps):
            step = torch.randn(start.shape, generator=generator)
            latent = project(latent + step * (NOISE * start.norm() / step.norm()), start, RADIUS)
        latents.append(latent)
    return await decoded(loop, prompts, latents)


async def mean_latent(loop: Loop, prompts: Sequence[RenderedPrompt], seed: int) -> list[Reply]:
    """The mean of the latents that earned their place, the same for all; plain while there are none."""
    earned = [episode.latent for episode in loop.gateway.store.scroll() if episode.latent_earned]
    latent = torch.from_numpy(np.mean(earned, axis=0, dtype=np.float32)) if earned else None
    return await decoded(loop, prompts, [latent] * len(prompts))


REQUESTS: Mapping[str, Mapping[str, Any]] = {
    "plain": {"effort": "none"},
    "low": {"effort": "low"},
    "medium": {"effort": "medium"},
    "evolution": {"effort": "high", "search": "evolution"},
    "gradient": {"effort": "high", "search": "gradient"},
}
"""Arms that are requests to the server, by the options that their `latent` object has."""

ARMS: Mapping[str, Arm] = {
    "plain": Arm(plain, "once"),
    "majority": Arm(majority, "once"),
    "best-of": Arm(best_of, "once"),
    "latentseek": Arm(latentseek, "once", refines=True),
    "random": Arm(random_latent, "nightly"),
    "low": Arm(steered(**REQUESTS["low"]), "nightly"),
    "recall": Arm(steered(recalls=True, effort="low", prior="none"), "nightly"),
    "mean": Arm(mean_latent, "nightly"),
    "walk": Arm(random_walk, "nightly"),
    "medium": Arm(steered(**REQUESTS["medium"]), "nightly"),
    "evolution": Arm(steered(**REQUESTS["evolution"]), "nightly", refines=True),
    "gradient": Arm(steered(**REQUESTS["gradient"]), "nightly", refines=True),
}


async def _samples(
    loop: Loop, prompts: Sequence[RenderedPrompt], count: int, seed: int
) -> list[list[Generation]]:
    firsts = [seed_of(prompt, seed) for prompt in prompts]
    return await samples(loop.engine, prompts, count, firsts)


def _chosen(prompt: RenderedPrompt, found: Sequence[Generation], chosen: int) -> Reply:
    generated = sum(len(one.token_ids) for one in found)
    reply = reply_of(found[chosen], SteeredPrompt(prompt.token_ids))
    return replace(
        reply,
        generated=generated,
        forward=generated + len(prompt.token_ids),
        samples=tuple(
            Sample(one.text, len(one.token_ids), one.finish_reason == "stop", vote(prompt, one))
            for one in found
        ),
    )
