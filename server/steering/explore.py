"""Sampling several answers to a request that was already answered.

Owns the background queue of explorations: on the slice of traffic that the operator allows, the model's
own rollouts vote, the best answer is remembered for the night to replay, and rows of the prior that cover the
prompt are measured. No client waits for any of it. Knows nothing of how answers are decoded or scored.
"""

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import torch

from memory.episode import Array, LatentMemoryError, prompt_digest
from model.engine import Engine, EngineError
from model.space import LatentRejectedError
from server.steering.call import SteeringCall, current_call
from server.steering.measure import measure
from server.steering.metrics import Metrics
from server.steering.priors import ActivePrior
from server.steering.refiners.refiner import Limits, Refiner, RefineResult
from server.steering.remember import Remember
from server.steering.rewards.reward import Reward
from server.steering.work import Work, episode_of

logger = logging.getLogger(__name__)

MAX_WAITING = 256
"""More are dropped: a server that is busy has better things to do."""

_OTHER_SEEDS = 1_000
"""How far from those that vote the seeds of measured answers are."""

ENDED = "the server ended before it explored"

Choose = Callable[[Work, Array], Awaitable[None]]
"""Answers a request that is held to choices, whose key is (d,); the work then holds what to remember."""

Report = Callable[[str, dict[str, Any]], None]
"""Told (trace id, fields of the trace that changed)."""


@dataclass(frozen=True, eq=False)
class Exploration:
    """A request to sample answers to."""

    work: Work
    key: Array
    """(d,) of its prompt."""
    start: torch.Tensor
    """(L, d) that recall and prior lead to."""
    row: str | None
    """Row whose latent the start is; None: it is another one."""
    position: int
    limits: Limits
    chooses: bool
    """Whether its choices are scored; nothing is sampled then."""
    space: str
    tenant: str


@dataclass(frozen=True, eq=False)
class _Waiting:
    exploration: Exploration
    context: contextvars.Context
    """Of its request: whoever starts it later may be another's task, and prefix caches are parted by this."""
    call: SteeringCall | None
    """None: there is no answer to wait for."""

    @property
    def ready(self) -> bool:
        return self.call is None or self.call.answered


class Explorer:
    """Explores in the background, oldest first, and no request before its client has its answer.

    Args:
        engine: Answers under rows that are measured.
        vote: Samples answers that vote.
        choose: Answers what is held to choices.
        verifier: Grades what is measured; None: the consensus does.
        priors: Told what rows are worth.
        remember: Where episodes go.
        report: Told what came of an exploration.
        metrics: Count explorations and what they generate.
        threshold: Least reward of an answer that is remembered.
        concurrency: Explorations that the engine works on at a time.
    """

    def __init__(
        self,
        engine: Engine,
        vote: Refiner,
        choose: Choose,
        verifier: Reward | None,
        priors: ActivePrior,
        remember: Remember,
        report: Report,
        metrics: Metrics,
        *,
        threshold: float,
        concurrency: int,
    ) -> None:
        self._concurrency, self._metrics = concurrency, metrics
        self._engine, self._verifier, self._priors = engine, verifier, priors
        self._vote, self._choose = vote, choose
        self._remember, self._report, self._threshold = remember, report, threshold
        self._waiting: deque[_Waiting] = deque()
        self._running: set[asyncio.Task[None]] = set()

    def submit(self, exploration: Exploration) -> bool:
        """Take an exploration and return at once; False when too many wait."""
        if len(self._waiting) >= MAX_WAITING:
            self._metrics.explorations.labels("skipped").inc()
            logger.warning(
                "trace %s is not explored: too many requests wait for it", exploration.work.trace_id
            )
            return False
        call = current_call.get()
        self._waiting.append(_Waiting(exploration, contextvars.copy_context(), call))
        if call is None:
            self._next()
        else:
            call.afterwards.append(self._next)
        return True

    async def drain(self) -> None:
        """Wait until nothing is pending."""
        while self._running:
            await asyncio.wait(self._running)

    async def close(self) -> None:
        """Stop; what is pending is lost, and its traces say so."""
        for waiting in self._waiting:
            self._not_remembered(waiting.exploration.work.trace_id, ENDED)
        self._waiting.clear()
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _next(self) -> None:
        while len(self._running) < self._concurrency:
            first = next((waiting for waiting in self._waiting if waiting.ready), None)
            if first is None:
                return
            self._waiting.remove(first)
            task = asyncio.create_task(
                self._explore(first.exploration), name="explore", context=first.context
            )
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            self._next()

    def _not_remembered(self, trace_id: str, why: str | None, **found: Any) -> None:
        self._report(trace_id, {**found, "remembered": "no", "why_not_remembered": why})

    async def _explore(self, exploration: Exploration) -> None:
        work = exploration.work
        try:
            result = await self._answer(exploration)
        except asyncio.CancelledError:
            self._not_remembered(work.trace_id, ENDED)
            raise
        except Exception as error:
            if isinstance(error, EngineError | LatentRejectedError):
                logger.warning(
                    "trace %s: exploring failed: %s: %s", work.trace_id, type(error).__name__, error
                )
            else:
                logger.exception("trace %s: exploring failed", work.trace_id)
            self._metrics.explorations.labels("failed").inc()
            self._not_remembered(work.trace_id, "exploring failed")
            return
        self._metrics.explored_tokens.inc(result.usage.generated_tokens)
        why_not = work.why_not_remembered(self._threshold)
        measured = await self._measure(exploration, result)
        explored = {
            "reward_plain": result.reward_before,
            "reward_start": result.reward_start,
            "generated_tokens": result.usage.generated_tokens,
            "forward_tokens": result.usage.forward_tokens,
            "rows": measured,
        }
        if why_not is not None or work.episode is None:
            self._metrics.explorations.labels("discarded").inc()
            self._not_remembered(work.trace_id, why_not, explored=explored)
            return
        self._metrics.explorations.labels("remembered").inc()
        self._report(work.trace_id, {"explored": explored, "episode_id": work.episode.id})
        self._remember.submit(work.episode)

    async def _answer(self, exploration: Exploration) -> RefineResult:
        """Return what was sampled, nothing where choices are scored; the work then holds what to remember."""
        work, limits = exploration.work, exploration.limits
        if exploration.chooses:
            async with asyncio.timeout(limits.deadline_s):
                await self._choose(work, exploration.key)
            return RefineResult("steps")
        result = await self._vote.refine(work.prompt, exploration.start, exploration.position, limits)
        work.result = result
        work.episode = episode_of(
            work,
            exploration.key,
            exploration.space,
            exploration.tenant,
            exploration.start,
            limits.start_is_served,
            result,
        )
        return result

    async def _measure(self, exploration: Exploration, result: RefineResult) -> dict[str, float]:
        """Return the differences that rows made, by their id, and hand them over."""
        work, limits = exploration.work, exploration.limits
        prompt = work.prompt.token_ids
        comparisons = work.comparisons(exploration.key)
        if not comparisons or not (result.plain or exploration.chooses):
            return {}
        given = {None: result.plain} | ({exploration.row: result.start} if exploration.row else {})
        try:
            async with asyncio.timeout(limits.deadline_s):
                found = await measure(
                    self._engine,
                    self._verifier,
                    work.prompt,
                    exploration.position,
                    comparisons,
                    given,
                    max_tokens=limits.max_tokens,
                    seed=limits.seed + _OTHER_SEEDS,
                )
            self._metrics.explored_tokens.inc(found.generated_tokens)
            await self._priors.observe(prompt_digest(prompt), found.differences)
        except (EngineError, LatentRejectedError, LatentMemoryError, TimeoutError) as error:
            logger.warning("trace %s: measuring failed: %s: %s", work.trace_id, type(error).__name__, error)
            self._metrics.measurements.labels("failed").inc()
            return {}
        self._metrics.measurements.labels("measured" if found.differences else "no-label").inc()
        return dict(found.differences)
