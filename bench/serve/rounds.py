"""The rounds of `bench serve`: the arms in turn.

Owns what is asked of which server, in which order.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from bench.serve.arms import BARE, body, order, questions
from bench.serve.load import Round, client_of, load

Progress = Callable[[str, int, int, str], None]


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
    """Episodes in memory before the server starts."""

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
        CommandError: a request failed.
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

        label = 0
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
