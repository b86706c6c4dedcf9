"""A steering pipeline on the scripted engine, with everything around it within reach."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry

from config.settings import Settings
from memory.episode import new_id
from memory.experiment import Experiments
from memory.prior import RECALL_FLOOR
from memory.registry import PriorRegistry
from memory.state import State
from memory.store import EpisodeStore
from server.steering.active_prior import ActivePrior
from server.steering.experiment import Experiment
from server.steering.metrics import Metrics
from server.steering.outcome import Outcome
from server.steering.pipeline import Steering
from server.steering.prompt import Options, RenderedPrompt
from server.steering.remember import Remember
from server.steering.traces import TraceLog
from tests.scripted_engine import ScriptedEngine
from tests.server.steering.fakes import ListStore, rendered
from tests.tables import row


@dataclass
class Day:
    """One gateway's steering."""

    settings: Settings
    engine: ScriptedEngine
    store: Any
    state: State
    registry: PriorRegistry
    priors: ActivePrior
    remember: Remember
    traces: TraceLog
    steering: Steering
    metrics: Metrics
    collectors: CollectorRegistry
    experiment: Experiment

    async def ask(
        self, question: str | RenderedPrompt = "apples How many?", effort: Any = "low", **options: Any
    ) -> tuple[Outcome, dict[str, Any]]:
        """Steer one request and return its outcome and trace."""
        prompt = rendered(self.engine, question) if isinstance(question, str) else question
        trace_id = new_id()
        outcome = await self.steering.steer(prompt, Options.of(self.settings, effort, **options), trace_id)
        trace = await self.traces.get(trace_id)
        assert trace is not None
        return outcome, trace

    async def learn(self, question: str = "apples How many?", **options: Any) -> Outcome:
        """Refine a request until it is remembered."""
        outcome, _ = await self.ask(question, "high", **options)
        assert await self.remember.drain()
        return outcome

    async def publish(
        self,
        question: str = "apples How many?",
        *,
        active: bool = True,
        pinned: bool = True,
        part: float = 1.0,
        floor: float | None = None,
    ) -> str:
        """Publish a prior that goes `part` of the way to this topic's best answers, and swap it in.

        Its row speaks whatever the evidence, unless it is not `pinned`.
        """
        prompt = rendered(self.engine, question)
        key = (await self.engine.keys([prompt.token_ids])).numpy()
        neutral, best = self.engine.neutral_latent(), self.engine.best_latent(prompt.token_ids)
        made = row(torch.lerp(neutral, best, part), key)
        version = self.registry.publish([made], {} if floor is None else {RECALL_FLOOR: floor})
        if active:
            self.registry.activate(version, pinned=pinned)
            await self.priors.refresh()
        return version

    def count(self, name: str, **labels: str) -> float:
        """Return the value of a collector."""
        return self.collectors.get_sample_value(f"latentevolve_{name}", labels) or 0.0


MakeDay = Callable[..., Awaitable[Day]]


@pytest.fixture
async def make_day(tmp_path: Path, state: State) -> AsyncIterator[MakeDay]:
    """Return a maker of days; settings as keywords."""
    async with AsyncExitStack() as stack:

        async def make(
            engine: ScriptedEngine | None = None, store: EpisodeStore | None = None, **changes: Any
        ) -> Day:
            engine = engine or ScriptedEngine()
            store = store or ListStore()
            settings = Settings(
                _env_file=None,
                **(
                    {
                        "rewards": "confidence=1",
                        "recall_timeout_s": 30,
                        "low_recalls": True,
                        "explore_share": 0.0,
                    }
                    | changes
                ),
            )
            collectors = CollectorRegistry()
            metrics = Metrics(collectors)
            registry = PriorRegistry(tmp_path / "priors", engine.space.id, state)
            priors = ActivePrior(registry, state, poll_s=0.01, metrics=metrics)

            async def prior_of(_: str) -> ActivePrior:
                return priors

            remember = Remember(store, limit=settings.remember_queue, metrics=metrics, first_wait_s=0.01)
            traces = TraceLog(state, limit=settings.trace_limit)
            remember.listen(traces.settle)
            traces.start()
            remember.start()
            stack.push_async_callback(traces.close)
            stack.push_async_callback(remember.close, 1.0)
            experiment = Experiment(Experiments(state, engine.space.id), settings.holdout_share)
            experiment.start()
            stack.push_async_callback(experiment.close)
            steering = Steering(
                engine, store, prior_of, remember, traces, settings, metrics=metrics, experiment=experiment
            )
            stack.push_async_callback(steering.close)
            return Day(
                settings,
                engine,
                store,
                state,
                registry,
                priors,
                remember,
                traces,
                steering,
                metrics,
                collectors,
                experiment,
            )

        yield make


@pytest.fixture
async def day(make_day: MakeDay) -> Day:
    """A day with an empty memory and no prior."""
    return await make_day()


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Return whether two latents are equal but for float16, in which episodes are kept."""
    assert one is not None
    assert other is not None
    return torch.allclose(one, other, atol=1e-2)
