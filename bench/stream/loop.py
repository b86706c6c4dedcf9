"""The server's own loop in this process: steering, memory and nights around one engine.

Owns how a day and a night of the benchmark run. They are the gateway's parts as `server/wiring.py` puts
them together, without HTTP. Knows nothing of arms, labels or files of results.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import chain
from typing import Any, cast

from prometheus_client import CollectorRegistry

from bench.asking import render, seed_of
from bench.engine import Counted
from bench.stream.arms import ARMS
from bench.stream.plan import Plan
from bench.stream.reply import Reply
from bench.stream.runner import Lived, Progress, check_reason
from cli.demonstration.stream import Item
from cli.failure import USAGE, CommandError
from config.settings import Settings
from memory.atomic import write_json
from memory.episode import Episode, LatentMemoryError, new_id
from memory.night import NightLog
from model.engine import Engine
from server.gateway import Gateway
from server.steering.outcome import Outcome
from server.steering.prompt import Options, RenderedPrompt
from server.wiring import assemble
from worker.errors import TrainingDivergedError
from worker.night import run_night

DEADLINE_S = 3600.0
"""Of a refinement: a result must not depend on how busy the machine is."""

AGAIN = "see the log above; the same command goes on from here"


class Loop:
    """One memory and its priors, around an engine that is shared with other loops."""

    def __init__(self, engine: Counted, gateway: Gateway, plan: Plan, registry: CollectorRegistry) -> None:
        self._counted, self.engine = engine, cast(Engine, engine)
        self.gateway, self.plan = gateway, plan
        self._registry = registry

    @property
    def settings(self) -> Settings:
        """The server's settings."""
        return self.gateway.settings

    @property
    def spent(self) -> int:
        """What the engine has computed since this was opened, in forward-equivalent tokens."""
        return self._counted.forward

    def render(self, item: Item, *, instructed: bool = True) -> RenderedPrompt:
        """Return a question as the gateway would see it, with the plan's instruction and system or bare."""
        return render(
            self.engine,
            item,
            instruction=self.plan.instruction if instructed else "",
            system=self.plan.system if instructed else "",
            max_tokens=self.plan.max_tokens,
        )

    async def steer(self, prompt: RenderedPrompt, **options: Any) -> Outcome:
        """Return what the server would inject; nothing is remembered unless `store` says so.

        Raises:
            CommandError: something failed; the server would answer plainly, which is no result.
        """
        chosen: dict[str, Any] = {"effort": "low", "store": False, "explore": False, "deadline_s": DEADLINE_S}
        chosen |= options
        outcome = await self.gateway.steering.steer(prompt, Options.of(self.settings, **chosen), new_id())
        check_reason(outcome.reason, AGAIN)
        return outcome

    def check_room(self, asked: Iterable[Item], unlike: Iterable[Item]) -> None:
        """Say before hours of work that a question is too long for its answer budget.

        Raises:
            CommandError: exit code 2, naming the first such question.
        """
        longest = self.engine.max_model_len - self.settings.latent_length - self.plan.max_tokens
        for prompt in chain(
            map(self.render, asked), (self.render(item, instructed=False) for item in unlike)
        ):
            size = len(prompt.token_ids)
            if size > longest:
                raise CommandError(
                    f"a question of {size} tokens leaves no room for {self.plan.max_tokens} of an answer "
                    f"in {self.engine.max_model_len}: {prompt.question[:60]!r}",
                    "raise --setting max_model_len=..., lower --max-tokens, or take the question out",
                    USAGE,
                )

    async def ask(self, arm: str, items: Sequence[Item], seed: int) -> list[Reply]:
        """Let an arm answer; nothing is remembered of it."""
        return await ARMS[arm].answer(self, list(map(self.render, items)), seed)

    async def unlike(self, items: Sequence[Item], seed: int) -> list[tuple[str, Reply]]:
        """Return plain answers, and those at `low`, to bare prompts."""
        prompts = [self.render(item, instructed=False) for item in items]
        plain = await ARMS["plain"].answer(self, prompts, seed)
        low = await ARMS["low"].answer(self, prompts, seed)
        return [(before.text, after) for before, after in zip(plain, low, strict=True)]

    async def live(self, items: Sequence[Item], seed: int) -> list[Lived]:
        """Serve some of a day's requests; what is worth it is remembered when this returns.

        Raises:
            CommandError: something failed; the same requests may be asked again.
        """
        failed = self._failed_explorations()
        effort = self.plan.day_effort
        prompts = [self.render(item) for item in items]
        self._forget(items)
        # All at once, so that what they explore can share the engine's batches.
        outcomes = await asyncio.gather(
            *(
                self.steer(
                    prompt, effort=effort, store=True, explore=effort == "low", seed=seed_of(prompt, seed)
                )
                for prompt in prompts
            )
        )
        await self.gateway.steering.explorer.drain()
        if self._failed_explorations() > failed:
            raise CommandError("exploring failed", AGAIN)
        if not await self.gateway.remember.drain(60.0):
            raise CommandError("the memory does not take episodes", "see the log above")
        kept = {item.question: episode.summary() for item, episode in self.remembered(items)}
        return [
            Lived(outcome.mode, kept.get(item.question))
            for item, outcome in zip(items, outcomes, strict=True)
        ]

    def remembered(self, items: Sequence[Item]) -> list[tuple[Item, Episode]]:
        """Return those of the questions that are remembered, and what of each."""
        prompts = {self.render(item).token_ids: item for item in items}
        return [
            (item, episode)
            for episode in self.gateway.store.scroll()
            if (item := prompts.get(tuple(episode.prompt_token_ids))) is not None
        ]

    def _failed_explorations(self) -> float:
        return self._registry.get_sample_value("latentevolve_explorations_total", {"result": "failed"}) or 0.0

    def _forget(self, items: Sequence[Item]) -> None:
        """Delete what a stopped run remembered of these questions, which are asked again."""
        known = [episode.id for _, episode in self.remembered(items)]
        if known:
            self.gateway.store.delete(known)

    async def night(self, name: str, progress: Progress) -> dict[str, Any]:
        """Consolidate as the worker does and serve what was promoted; a night of this name is run once.

        Returns its record, and the labels that its manifest names; none without a version.

        A stopped night goes on, and one that had ended before its end was noted is not run again.

        Raises:
            CommandError: it failed, and the next one of this name is a new one; not for a training that
                diverged, which is a result.
        """
        log = NightLog(self.gateway.state)
        known = self.settings.data_dir / f"{name}.json"
        resumed = known.exists()
        record = log.get(json.loads(known.read_text())["id"]) if resumed else None
        if record is None:
            record = log.running(self.gateway.space) or await self.gateway.nights.start("cli")
            write_json(known, {"id": record.id})
        if not record.ended:
            watching = asyncio.create_task(_watch(log, record.id, progress))
            try:
                record = await run_night(record.id, self.settings, lambda settings: self.engine)
            finally:
                watching.cancel()
            await self.gateway.prior.refresh()
        if record.state == "failed" and TrainingDivergedError.__name__ not in str(record.error):
            known.unlink()
            raise CommandError(f"the night failed: {record.error}", AGAIN)
        manifest = self.gateway.registry.load(record.version).manifest if record.version else {}
        return {**record.to_json(), "labels": manifest.get("labels", ()), "resumed": resumed}


@asynccontextmanager
async def open_loop(engine: Engine, settings: Settings, plan: Plan) -> AsyncIterator[Loop]:
    """Open the memory in the settings' data folder around an engine.

    Raises:
        CommandError: another process has it open, or it cannot be read.
    """
    registry = CollectorRegistry()

    async def answers() -> bool:
        return True

    counted = Counted(engine)
    async with AsyncExitStack() as stack:
        try:
            gateway = await stack.enter_async_context(
                assemble(
                    settings,
                    registry,
                    engine=cast(Engine, counted),
                    inner=None,
                    served=tuple,
                    engine_answers=answers,
                    checks=(),
                    send_night=lambda night_id: None,  # run here, at once
                )
            )
        except LatentMemoryError as error:
            raise CommandError(
                str(error), "end what else runs on this folder, then give the command again"
            ) from error
        yield Loop(counted, gateway, plan, registry)


async def _watch(log: NightLog, night_id: str, progress: Progress) -> None:
    while True:
        await asyncio.sleep(1)
        record = log.get(night_id)
        if record is not None:
            progress(record.phase, record.done, record.total, record.message)
