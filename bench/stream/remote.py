"""A running server in the loop: the same stream over HTTP, by the official OpenAI client.

Owns what is sent and how answers, traces and nights come back. Days are requests at the plan's effort, those
at `low` explored; nights are started by the API and awaited. Knows nothing of labels or files of results.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.stream.arms import REQUESTS
from bench.stream.plan import Plan
from bench.stream.reply import Reply, with_search
from bench.stream.runner import Lived, Progress, check_reason
from cli.chat import Chat
from cli.demonstration import day
from cli.demonstration.day import plain_and_low, run_day
from cli.demonstration.stream import Item
from cli.failure import USAGE, CommandError
from cli.gateway import Gateway
from cli.night import follow_night, start_night, wait_until_served
from config.settings import Settings
from memory.atomic import write_json
from model.engine import Usage
from server.steering.outcome import SEARCHED
from worker.errors import TrainingDivergedError

CONCURRENCY = 4
"""Requests at a time."""
AGAIN = "see the server's log; the same command goes on from here"


class Remote:
    """One memory of a running server.

    Args:
        gateway: Its own routes.
        chat: Its chat completions.
        plan: Of the run.
        folder: Of the seed, for what a run that goes on has to know.
    """

    def __init__(self, gateway: Gateway, chat: Chat, plan: Plan, folder: Path) -> None:
        self._gateway, self._chat, self._plan, self._folder = gateway, chat, plan, folder

    spent: int | None = None
    """A server does not tell what its nights compute."""

    def check_room(self, asked: Iterable[Item], unlike: Iterable[Item]) -> None:
        """The server itself refuses what is too long."""

    async def live(self, items: Sequence[Item], seed: int) -> list[Lived]:
        """Serve some of a day's requests; what is worth it is remembered when this returns.

        Raises:
            CommandError: something failed; the same requests may be asked again.
        """
        effort = self._plan.day_effort
        latent = {"effort": effort, "seed": seed, **({"explore": True} if effort == "low" else {})}
        replies = await asyncio.to_thread(self._ask, items, latent)
        return [
            Lived(reply.mode, await asyncio.to_thread(self._episode, reply.trace), _reply(reply))
            for reply in replies
        ]

    async def ask(self, arm: str, items: Sequence[Item], seed: int) -> list[Reply]:
        """Ask as an arm of `REQUESTS` does; nothing is remembered of it."""
        latent = {**REQUESTS[arm], "seed": seed, "store": False}
        return [_reply(reply) for reply in await asyncio.to_thread(self._ask, items, latent)]

    async def unlike(self, items: Sequence[Item], seed: int) -> list[tuple[str, Reply]]:
        """Return plain answers, and those at `low`, to bare prompts."""
        prompts = [item.question for item in items]
        tokens = self._plan.max_tokens
        plain, low = await asyncio.to_thread(
            plain_and_low, self._chat, self._gateway, prompts, max_tokens=tokens, store=False
        )
        return [(one.text, _reply(other)) for one, other in zip(plain.replies, low.replies, strict=True)]

    async def night(self, name: str, progress: Progress) -> dict[str, Any]:
        """Run a night of this name, once, and return its record with the labels that it kept.

        Raises:
            CommandError: it failed, and the next one of this name is a new one; not for a training that
                diverged, which is a result.
        """
        return await asyncio.to_thread(self._night, self._folder / f"{name}.json", progress)

    def _night(self, known: Path, progress: Progress) -> dict[str, Any]:
        if known.exists():
            night_id = json.loads(known.read_text(encoding="utf-8"))["id"]
            record = self._gateway.get(f"/v1/consolidations/{night_id}")
        else:
            record = start_night(self._gateway)
            write_json(known, {"id": record["id"]})

        def tell(found: dict[str, Any]) -> None:
            progress(found["phase"], found["done"], found["total"], found["message"])

        record = follow_night(self._gateway, record, tell)
        if record["state"] == "failed" and TrainingDivergedError.__name__ not in str(record["error"]):
            known.unlink()
            raise CommandError(f"the night failed: {record['error']}", AGAIN)
        wait_until_served(self._gateway, record)
        version = record.get("version")
        manifest = self._gateway.get(f"/v1/priors/{version}") if version else {}
        return {**record, "labels": manifest.get("episode_labels", ())}

    def _ask(self, items: Sequence[Item], latent: dict[str, Any]) -> list[day.Reply]:
        plan = self._plan
        replies = run_day(
            self._chat,
            self._gateway,
            [item.asked(plan.instruction) for item in items],
            [item.choices for item in items],
            latent=latent,
            max_tokens=plan.max_tokens,
            concurrency=CONCURRENCY,
            system=plan.system or None,
        ).replies
        for reply in replies:
            check_reason(reply.reason, AGAIN)
        return replies

    def _episode(self, trace: dict[str, Any]) -> dict[str, Any] | None:
        why = trace.get("why_not_remembered")
        if trace.get("remembered") in ("pending", "failed", "dropped") or why == "exploring failed":
            raise CommandError(f"an answer is not remembered: {why or trace['remembered']}", AGAIN)
        if trace.get("remembered") != "stored":
            return None
        return self._gateway.get(f"/v1/memory/episodes/{trace['episode_id']}")


@asynccontextmanager
async def open_remote(settings: Settings, plan: Plan, folder: Path, seed: int) -> AsyncIterator[Remote]:
    """Open the memory of a seed on the server that the settings name.

    With an API key of the operator each seed has a tenant of its own; without keys the server's one memory is
    the seed's, and has to be empty when the run begins.

    Raises:
        CommandError: nobody answers, the key is not the operator's, or the memory is not empty.
    """
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    with Gateway(settings) as operator:
        if settings.api_key:
            settings = settings.model_copy(update={"api_key": _key(operator, folder, seed)})
    with Gateway(settings) as gateway, Chat(settings, gateway.models()[0]) as chat:
        begun = folder / "begun.json"
        if not begun.exists():
            _check_empty(gateway)
            write_json(begun, {"url": settings.url})
        yield Remote(gateway, chat, plan, folder)


def _key(operator: Gateway, folder: Path, seed: int) -> str:
    """Return a key of the seed's tenant; the file names it, without its secret, which changes each time."""
    path = folder / "key.json"
    if path.exists():
        key_id = json.loads(path.read_text(encoding="utf-8"))["id"]
        return str(operator.post(f"/v1/keys/{key_id}/rotate")["secret"])
    tenant = f"bench-{uuid.uuid4().hex[:8]}-{seed}"
    made = operator.post("/v1/keys", {"name": tenant, "tenant": tenant, "scopes": ["admin"]})
    write_json(path, {"id": made["id"], "tenant": tenant})
    return str(made["secret"])


def _check_empty(gateway: Gateway) -> None:
    stats = gateway.get("/v1/memory/stats")
    episodes = sum(int(space["episodes"]) for space in stats["spaces"].values())
    version = (stats.get("prior") or {}).get("version")
    if episodes or version:
        has = f"remembers {episodes} episodes" if episodes else f"serves {version}"
        raise CommandError(
            f"the server at {gateway.url} {has} already; a run begins with an empty memory",
            "start one with an empty --data-dir, or give the operator's --api-key: each seed gets a tenant",
            USAGE,
        )


def _reply(reply: day.Reply) -> Reply:
    """Return an answer with what its usage and its trace say that it cost."""
    answer, trace = reply.answer, reply.trace
    tokens, prompt = answer.completion_tokens or 0, answer.prompt_tokens or 0
    used = trace.get("usage") or {}
    latents = ((trace.get("latent") or {}).get("shape") or [0])[0]
    decoded = Reply(
        text=answer.text,
        tokens=tokens,
        finished=answer.finish_reason == "stop",
        generated=tokens,
        forward=prompt + latents + tokens,
        facts={
            "mode": reply.mode,
            "reason": reply.reason,
            "why_not_remembered": trace.get("why_not_remembered"),
        },
    )
    return with_search(decoded, Usage(**used), prompt, found=reply.mode in SEARCHED)
