"""The rounds of `bench serve`: remembering first, then arms in turn.

Owns what is asked of which server, in which order.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from openai import AsyncOpenAI

from bench.serve.arms import BARE, body, order, questions
from bench.serve.load import Round, client_of, load
from cli.failure import CommandError

Progress = Callable[[str, int, int, str], None]
REMEMBER_TOKENS = 8
TOGETHER = 4
"""Questions that are asked at a time so that they are remembered."""
FIRST_LABEL = 10_000
"""Prompts that are remembered have labels below, those that look whether they were from here on, and those
that are measured from twice as many."""


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    arms: Sequence[str]
    levels: Sequence[int]
    """Clients at a time."""
    rounds: int
    requests: int
    """Requests per client and round; at least 4 per round."""
    max_tokens: int
    remembered: int
    """Questions that recall something before measuring begins; all arms are asked these."""

    def requests_at(self, level: int) -> int:
        """Return the requests of one round."""
        return max(4, level * self.requests)


@dataclass(frozen=True)
class Addresses:
    """Where the servers are."""

    bare: str
    steered: str
    api_key: str | None = None


def run(
    at: Addresses, plan: Plan, texts: Sequence[str], progress: Progress
) -> dict[int, dict[str, list[Round]]]:
    """Return the rounds of each arm by concurrency.

    Raises:
        CommandError: a request failed, or nothing was remembered.
    """
    return asyncio.run(_run(at, plan, texts, progress))


async def _run(
    at: Addresses, plan: Plan, texts: Sequence[str], progress: Progress
) -> dict[int, dict[str, list[Round]]]:
    async with AsyncExitStack() as stack:
        bare = await stack.enter_async_context(client_of(at.bare))
        steered = await stack.enter_async_context(client_of(at.steered, at.api_key))
        models = {client: (await client.models.list()).data[0].id for client in (bare, steered)}
        clients = {arm: bare if arm == BARE else steered for arm in plan.arms}

        async def measure(arm: str, level: int, asked: Sequence[str], max_tokens: int) -> Round:
            client = clients[arm]
            return await load(
                client, models[client], asked, body(arm), concurrency=level, max_tokens=max_tokens
            )

        if any(arm not in (BARE, "none") for arm in plan.arms):
            texts = await _remember(steered, models[steered], plan, texts, progress)
        label = 2 * FIRST_LABEL
        for number, arm in enumerate(plan.arms):  # the first requests allocate, compile and connect
            progress("warm up", number, len(plan.arms), arm)
            label += 1
            await measure(arm, 2, questions(texts, label, 2), min(8, plan.max_tokens))
        progress("warm up", len(plan.arms), len(plan.arms), "")
        found: dict[int, dict[str, list[Round]]] = {}
        for level in plan.levels:
            found[level] = {arm: [] for arm in plan.arms}
            total = plan.rounds * len(plan.arms)
            for turn in range(plan.rounds):
                for place, arm in enumerate(order(plan.arms, turn)):
                    progress(f"{level} client{'s' * (level > 1)}", turn * len(plan.arms) + place, total, arm)
                    label += 1
                    asked = questions(texts, label, plan.requests_at(level))
                    found[level][arm].append(await measure(arm, level, asked, plan.max_tokens))
            progress(f"{level} client{'s' * (level > 1)}", total, total, "")
        return found


async def _remember(
    client: AsyncOpenAI, model: str, plan: Plan, texts: Sequence[str], progress: Progress
) -> list[str]:
    """Have questions remembered and return those whose like recalls something, `plan.remembered` of them.

    Raises:
        CommandError: there are not so many.
    """
    found: list[str] = []
    progress("remember", 0, plan.remembered, "")
    for label, at in enumerate(range(0, len(texts), TOGETHER), start=1):
        some = texts[at : at + TOGETHER]
        await _probe(client, model, questions(some, label, len(some)), {"latent": {"effort": "medium"}})
        await asyncio.sleep(0.5)  # episodes are written after the answers
        for place, text in enumerate(some):
            asked = questions([text], FIRST_LABEL + label, place + 1)[-1:]
            answered = await _probe(client, model, asked, body("low"))
            found += [text] * any("recall" in mode for mode in answered.modes)
        progress("remember", min(len(found), plan.remembered), plan.remembered, f"{at + len(some)} asked")
        if len(found) >= plan.remembered:
            return found
    raise CommandError(
        f"{len(found)} of {len(texts)} questions recall something",
        "choose others with --data, or --remembered",
    )


async def _probe(client: AsyncOpenAI, model: str, asked: Sequence[str], extra: Mapping[str, Any]) -> Round:
    return await load(client, model, asked, extra, concurrency=4, max_tokens=REMEMBER_TOKENS)
