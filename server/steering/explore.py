"""Sampling several answers to a request that was already answered.

Owns the background queue of explorations: on the slice of traffic that the operator allows, the model's
own rollouts vote, the best answer is remembered for the night to replay, and what recall and prior served
is measured against the unsteered answer. No client waits for any of it. Knows nothing of how answers are
decoded or scored.
"""

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from memory.episode import Array
from model.engine import EngineError
from model.space import LatentRejectedError
from server.steering.call import Mode, SteeringCall, current_call
from server.steering.lift import LiftTally
from server.steering.metrics import Metrics
from server.steering.refiners.refiner import Limits, Refiner
from server.steering.remember import Remember
from server.steering.work import Work, episode_of

logger = logging.getLogger(__name__)

MAX_WAITING = 256
"""More are dropped: a server that is busy has better things to do."""

ENDED = "the server ended before it explored"

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
    mode: Mode
    """How that would be served; plain where it would not be."""
    position: int
    limits: Limits
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
        refiner: Samples and votes, in no optimisation steps.
        remember: Where episodes go.
        report: Told what came of an exploration.
        metrics: Count explorations and what they generate.
        lifts: Told what the start would have gained.
        threshold: Least reward of an answer that is remembered.
        concurrency: Explorations that the engine works on at a time.
    """

    def __init__(
        self,
        refiner: Refiner,
        remember: Remember,
        report: Report,
        metrics: Metrics,
        lifts: LiftTally,
        *,
        threshold: float,
        concurrency: int,
    ) -> None:
        self._concurrency, self._metrics, self._lifts = concurrency, metrics, lifts
        self._refiner, self._remember, self._report, self._threshold = refiner, remember, report, threshold
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
            result = await self._refiner.refine(
                work.prompt, exploration.start, exploration.position, exploration.limits
            )
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
        work.result = result
        work.note_lift(self._lifts, exploration.mode)
        work.episode = episode_of(
            work,
            exploration.key,
            exploration.space,
            exploration.tenant,
            exploration.start,
            exploration.limits.start_is_served,
            result,
        )
        why_not = work.why_not_remembered(self._threshold)
        explored = {
            "reward_plain": result.reward_before,
            "reward_start": result.reward_start,
            "generated_tokens": result.usage.generated_tokens,
            "forward_tokens": result.usage.forward_tokens,
        }
        if why_not is not None or work.episode is None:
            self._metrics.explorations.labels("discarded").inc()
            self._not_remembered(work.trace_id, why_not, explored=explored)
            return
        self._metrics.explorations.labels("remembered").inc()
        self._report(work.trace_id, {"explored": explored, "episode_id": work.episode.id})
        self._remember.submit(work.episode)
