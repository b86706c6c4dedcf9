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
from cli.demonstration.stream import Item
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
    at: Addresses, plan: Plan, items: Sequence[Item], progress: Progress
) -> dict[int, dict[str, list[Round]]]:
    """Return the rounds of each arm by concurrency.

    Raises:
        CommandError: a request failed, or nothing was remembered.
    """
    return asyncio.run(_run(at, plan, items, progress))


async def _run(
    at: Addresses, plan: Plan, items: Sequence[Item], progress: Progress
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

        texts = [item.question for item in items]
        if any(arm not in (BARE, "none") for arm in plan.arms):
            texts = await _remember(steered, models[steered], plan, items, progress)
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
    client: AsyncOpenAI, model: str, plan: Plan, items: Sequence[Item], progress: Progress
) -> list[str]:
    """Have questions remembered and return those whose like recalls something, `plan.remembered` of them.

    Raises:
        CommandError: there are not so many.
    """
    found: list[str] = []
    progress("remember", 0, plan.remembered, "")
    for label, at in enumerate(range(0, len(items), TOGETHER), start=1):
        some = items[at : at + TOGETHER]
        await asyncio.gather(*(_teach(client, model, item, label, place) for place, item in enumerate(some)))
        await asyncio.sleep(0.5)  # episodes are written after the answers
        asked = questions([item.question for item in some], FIRST_LABEL + label, len(some))
        for item, question in zip(some, asked, strict=True):
            answered = await _probe(client, model, question, body("low"))
            found += [item.question] * any(mode.startswith("recall") for mode in answered.modes)
        progress("remember", min(len(found), plan.remembered), plan.remembered, f"{at + len(some)} asked")
        if len(found) >= plan.remembered:
            return found
    raise CommandError(
        f"{len(found)} of {len(items)} questions recall something",
        "choose others with --data, or --remembered",
    )


async def _teach(client: AsyncOpenAI, model: str, item: Item, label: int, place: int) -> None:
    """Ask so that the answer may be remembered; of few allowed answers, samples can agree on one."""
    allowed = {"structured_outputs": {"choice": list(item.choices)}} if item.choices else {}
    question = questions([item.question], label, place + 1)[-1]
    await _probe(client, model, question, {"latent": {"effort": "medium"}, **allowed})


async def _probe(client: AsyncOpenAI, model: str, question: str, extra: Mapping[str, Any]) -> Round:
    return await load(client, model, [question], extra, concurrency=1, max_tokens=REMEMBER_TOKENS)
