"""LatentSeek as an arm of the stream (arXiv 2505.13308).

Owns its loop over one question. Steps are the published ones, and as published the last answer is given, not
the best. Its self-reward, judgements by the model that tell right from wrong no better than chance on small
models, gives way to the server's own reward, whose votes count as part of its cost. Answers are decoded with
a KV cache, which the published code does without. Needs the transformers engine, and answers that are free.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from bench.asking import samples, scorer_of, seed_of
from bench.latentseek import SHARE, STEPS, Opening, states_of
from bench.stream.reply import Reply, reply_of
from model.engine import Generation, SteeredPrompt
from server.steering.prompt import RenderedPrompt
from server.steering.rewards.scorer import Scorer

if TYPE_CHECKING:
    from bench.stream.loop import Loop
    from model.transformers_engine import TransformersEngine

ENOUGH = -0.2
"""A reward above this, of the published range [−1, 0], ends the search."""
VOTES = 8
"""Samples that the reward compares answers with."""


async def latentseek(loop: Loop, prompts: Sequence[RenderedPrompt], seed: int) -> list[Reply]:
    """Answer each question by ten steps, or fewer where the reward is high before."""
    model = cast("TransformersEngine", loop.engine).model
    scorer = scorer_of(loop.settings)
    pools = await samples(loop.engine, prompts, VOTES, [seed_of(prompt, seed) for prompt in prompts])
    firsts = await loop.engine.generate(
        [SteeredPrompt(prompt.token_ids) for prompt in prompts], [prompt.decoding for prompt in prompts]
    )
    return [
        await _sought(loop.engine, model, scorer, prompt, first, pool)
        for prompt, first, pool in zip(prompts, firsts, pools, strict=True)
    ]


async def _sought(
    engine: Any,
    model: Any,
    scorer: Scorer,
    prompt: RenderedPrompt,
    first: Generation,
    pool: Sequence[Generation],
) -> Reply:
    network, tokens = model.network, first.token_ids
    count = max(1, math.ceil(SHARE * len(tokens)))
    opening = Opening(network.get_output_embeddings(), states_of(network, prompt.token_ids, tokens, count))
    answer, taken = first, 0
    written = len(tokens) + sum(len(one.token_ids) for one in pool)
    while taken < STEPS:
        (scored,) = await scorer.score(prompt, [answer], pool)
        reward = scored.reward - 1.0
        if reward > ENOUGH:
            break
        opening.step(reward)
        answer = await _from(engine, model, prompt, opening.tokens())
        written += len(answer.token_ids)
        taken += 1
    reply = reply_of(answer, SteeredPrompt(prompt.token_ids), {"steps": taken})
    return replace(reply, generated=written, forward=len(prompt.token_ids) + written)


async def _from(engine: Any, model: Any, prompt: RenderedPrompt, opening: list[int]) -> Generation:
    """Return the greedy answer that begins with these tokens."""
    ended = next((at for at, token in enumerate(opening) if token in model.ends), None)
    if ended is not None:
        tokens = tuple(opening[: ended + 1])
        return Generation(engine.decode(tokens), tokens, "stop")
    left = replace(prompt.decoding, max_tokens=max(1, prompt.decoding.max_tokens - len(opening)))
    (rest,) = await engine.generate([SteeredPrompt((*prompt.token_ids, *opening))], [left])
    tokens = (*opening, *rest.token_ids)
    return Generation(engine.decode(tokens), tokens, rest.finish_reason)
