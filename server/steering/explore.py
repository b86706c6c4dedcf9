"""Searching for answers to requests that were answered already.

Owns the background queue of explorations: while nobody waits for the server, answers to recent prompts vote,
or their choices are scored, what they agree on is remembered for the night to replay, and rows of the prior
that cover the prompt are measured. No client waits for any of it: whoever comes ends what runs, and it begins
again later. Knows nothing of how answers are decoded or scored.
"""

import asyncio
import contextvars
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from memory.episode import TENANT, Array, LatentMemoryError, prompt_digest, prompt_id
from model.engine import Engine, EngineError, Generation, in_background
from model.engine_time import engine_time
from model.space import LatentRejectedError
from server.spans import span
from server.steering.active_prior import PriorsOf
from server.steering.measure import measure
from server.steering.metrics import Metrics
from server.steering.new_episode import episode_of
from server.steering.people import People
from server.steering.prompt import Options, longest_answer, seed_of
from server.steering.remember import Remember
from server.steering.request import Request
from server.steering.rewards.reward import Reward
from server.steering.rewards.scorer import Scorer
from server.steering.search.result import SearchResult
from server.steering.search.session import Session
from server.steering.search.vote import Vote
from server.steering.start import Start
from server.tracing import evaluated

logger = logging.getLogger(__name__)

MAX_WAITING = 256
"""Of a tenant; more are dropped: a server that is busy has better things to do."""
MAX_LATELY = 4096
"""Prompts that are known to have been explored."""
MOST_TRIES = 3
"""A prompt that takes longer than clients leave is given up then, so that others get their turn."""
PAUSE_S = 0.2
"""For how long nobody must have waited before exploring goes on: clients often ask again at once."""
HOUR_S = 3600.0
DEADLINE_S = 600.0
"""Nobody waits for an exploration; this ends one whose engine hangs."""

_OTHER_SEEDS = 1_000
"""How far from those that vote the seeds of measured answers are."""

ENDED = "the server ended before it explored"

Choose = Callable[[Request, Array], Awaitable[None]]
"""Answers a request that is held to choices, whose key is (d,); it then holds what to remember."""

Report = Callable[[str, dict[str, Any]], None]
"""Told (trace id, fields of the trace that changed)."""


@dataclass(frozen=True, eq=False)
class Exploration:
    """A request to search for."""

    request: Request
    start: Start
    tries: int = 0
    """How often it was begun and ended by a client."""
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    """Of its request: whoever starts it later may be another's task, and prefix caches are parted by this."""

    @property
    def tenant(self) -> str:
        """Whose request it is."""
        return self.request.options.tenant

    @property
    def asked(self) -> bool:
        """Whether the request itself asked for it; then neither time nor tokens are spared."""
        return "explore" in self.request.options.given


@dataclass(frozen=True)
class ExplorerLimits:
    """What exploring may take."""

    concurrency: int
    """Explorations that the engine works on at a time."""
    beside: int
    """Most requests that somebody waits for beside them."""
    time_share: float
    """Share of the time that they take, in (0, 1]."""
    tokens_per_hour: int
    """Most tokens that they generate."""
    votes: int
    """Answers that vote on one request."""


class Explorer:
    """Explores in the background, while hardly anybody waits for an answer: oldest first, tenants in turn.

    Args:
        engine: Finds keys, and answers under rows that are measured.
        scorer: Scores answers that vote.
        choose: Answers what is held to choices.
        verifier: Grades what is measured; None: the consensus does.
        priors_of: Finds whose priors are told what rows are worth.
        people: Told what answers said that were graded.
        remember: Where episodes go.
        report: Told what came of an exploration.
        metrics: Count explorations and what they generate.
        threshold: Least reward of an answer that is remembered.
        limits: What all of it may take.
        agreed: Told (trace id, answer) of what samples agree on.
    """

    def __init__(
        self,
        engine: Engine,
        scorer: Scorer,
        choose: Choose,
        verifier: Reward | None,
        priors_of: PriorsOf,
        people: People,
        remember: Remember,
        report: Report,
        metrics: Metrics,
        *,
        threshold: float,
        limits: ExplorerLimits,
        agreed: Callable[[str, str], None] = lambda *_: None,
    ) -> None:
        self._metrics, self._limits = metrics, limits
        self._engine, self._verifier, self._priors_of, self._people = engine, verifier, priors_of, people
        self._scorer, self._choose = scorer, choose
        self._remember, self._report, self._threshold = remember, report, threshold
        self._agreed = agreed
        self._waiting: deque[Exploration] = deque()
        self._running: dict[asyncio.Task[None], Exploration] = {}
        self._lately: OrderedDict[str, None] = OrderedDict()
        """Prompts that are not explored again for being asked again."""
        self._clients = 0
        """Requests that somebody waits for."""
        self._spent: deque[tuple[float, int, str]] = deque()
        """When how many tokens were generated for whom, within the last hour."""
        self._turns: dict[str, int] = {}
        """When each tenant that waits was last begun to be explored for, in numbers that grow."""
        self._rests_until = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._closed = False
        self._withdrawn: set[Exploration] = set()

    @property
    def waiting(self) -> int:
        """How many wait, of all tenants."""
        return len(self._waiting)

    def summary(self, tenant: str = TENANT) -> dict[str, int]:
        """Return what waits and runs for a tenant, and its tokens of the last hour."""
        return {
            "waiting": self._waiting_of(tenant),
            "running": sum(one.tenant == tenant for one in self._running.values()),
            "tokens_last_hour": self._tokens(tenant),
        }

    def _waiting_of(self, tenant: str) -> int:
        return sum(one.tenant == tenant for one in self._waiting)

    def submit(self, exploration: Exploration) -> bool:
        """Take an exploration and return at once; False where too many wait, or it was made lately."""
        request, prompt = exploration.request, self._prompt(exploration)
        if prompt in self._lately and not exploration.asked:
            return False
        if self._waiting_of(exploration.tenant) >= MAX_WAITING:
            self._metrics.explorations.labels("skipped").inc()
            logger.info("trace %s is not explored: too many requests wait for it", request.trace_id)
            return False
        self._lately[prompt] = None
        while len(self._lately) > MAX_LATELY:
            self._lately.popitem(last=False)
        self._waiting.append(exploration)
        self._next()
        return True

    @contextmanager
    def client(self) -> Iterator[None]:
        """While this lasts somebody waits for an answer: what runs is ended where that makes too many."""
        self._clients += 1
        if self._clients > self._limits.beside:
            for task in self._running:
                task.cancel()
        try:
            yield
        finally:
            self._clients -= 1
            if self._clients <= self._limits.beside:
                self._wake(PAUSE_S)

    def withdraw(self, trace_id: str) -> None:
        """Give up the exploration of a request."""
        for waiting in [one for one in self._waiting if one.request.trace_id == trace_id]:
            self._waiting.remove(waiting)
            self._lately.pop(self._prompt(waiting), None)
        for task, exploration in self._running.items():
            if exploration.request.trace_id == trace_id:
                self._withdrawn.add(exploration)
                self._lately.pop(self._prompt(exploration), None)
                task.cancel()

    def forget(self, tenant: str, prompts: Collection[str] | None) -> None:
        """Give up explorations of a tenant's prompts, by the ids of their episodes; None: of all of them.

        Nothing comes of them any more; a prompt that is asked again may be explored again.
        """

        def meant(one: Exploration) -> bool:
            return one.tenant == tenant and (prompts is None or self._prompt(one) in prompts)

        for exploration in [one for one in (*self._waiting, *self._running.values()) if meant(one)]:
            self.withdraw(exploration.request.trace_id)
            self._not_remembered(exploration.request.trace_id, "it was forgotten")

    async def drain(self) -> None:
        """Wait until nothing runs, and nothing that waits may."""
        while True:
            self._next()
            if not self._running:
                return
            await asyncio.wait(self._running)

    async def close(self) -> None:
        """Stop; what is pending is lost, and its traces say so."""
        self._closed = True
        if self._alarm is not None:
            self._alarm.cancel()
        for exploration in self._waiting:
            self._not_remembered(exploration.request.trace_id, ENDED)
        self._waiting.clear()
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _next(self) -> None:
        """Start what may be."""
        while not self._closed and len(self._running) < self._limits.concurrency:
            if self._clients > self._limits.beside:
                return
            pause_s = self._pause_s()
            ready = (one for one in self._waiting if one.asked or not pause_s)
            first = min(ready, key=lambda one: self._turns.get(one.tenant, 0), default=None)
            if first is None:
                if self._waiting:
                    self._wake(pause_s)
                return
            self._turns[first.tenant] = 1 + max(self._turns.values(), default=0)
            self._waiting.remove(first)
            task = asyncio.create_task(self._explore(first), name="explore", context=first.context)
            self._running[task] = first
            task.add_done_callback(self._ended)

    def _pause_s(self) -> float:
        """Return for how long neither time nor tokens are left; 0: they are."""
        now = time.monotonic()
        rest = max(0.0, self._rests_until - now)
        if self._tokens() >= self._limits.tokens_per_hour:
            rest = max(rest, (self._spent[0][0] if self._spent else now) + HOUR_S - now)
        return rest

    def _tokens(self, tenant: str | None = None) -> int:
        while self._spent and self._spent[0][0] < time.monotonic() - HOUR_S:
            self._spent.popleft()
        return sum(tokens for _, tokens, whose in self._spent if tenant is None or whose == tenant)

    def _wake(self, seconds: float) -> None:
        if self._closed:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = asyncio.get_running_loop().call_later(seconds, self._next)

    def _ended(self, task: asyncio.Task[None]) -> None:
        exploration = self._running.pop(task)
        if task.cancelled() and not self._closed and exploration not in self._withdrawn:
            if exploration.tries + 1 < MOST_TRIES:  # a client came; it begins anew when nobody waits
                self._waiting.append(replace(exploration, tries=exploration.tries + 1))
            else:
                self._metrics.explorations.labels("skipped").inc()
                self._lately.pop(self._prompt(exploration), None)
                self._not_remembered(exploration.request.trace_id, "clients came whenever it was explored")
        self._withdrawn.discard(exploration)
        self._next()

    def _prompt(self, exploration: Exploration) -> str:
        prompt = exploration.request.prompt
        return prompt_id(self._engine.space.id, exploration.tenant, prompt.token_ids, prompt.held_to)

    def _not_remembered(self, trace_id: str, why: str | None, **explored: Any) -> None:
        self._report(trace_id, {**explored, "remembered": "no", "why_not_remembered": why})

    async def _explore(self, exploration: Exploration) -> None:
        with span("explore", latentevolve__trace_id=exploration.request.trace_id):
            await self._explored(exploration)

    async def _explored(self, exploration: Exploration) -> None:
        in_background.set(True)
        engine_time.set(None)  # its request's clock, which may still run
        request, begun = exploration.request, time.monotonic()
        options = self._options(request)
        try:
            key = exploration.start.key
            if key is None:
                key = (await self._engine.keys([request.prompt.token_ids]))[0].numpy()
            result = await self._answer(exploration, key, options)
            measured = await self._measure(exploration, key, options, result)
        except asyncio.CancelledError:
            self._metrics.explorations.labels("interrupted").inc()
            if not request.chooses:  # nobody says how far it came: as if all of it were there
                lost = options.votes * min(options.answer_tokens, request.prompt.decoding.max_tokens)
                self._count(lost, exploration.tenant)
            if self._closed:
                self._not_remembered(request.trace_id, ENDED)
            raise
        except Exception as error:
            if isinstance(error, EngineError | LatentRejectedError):
                logger.warning(
                    "trace %s: exploring failed: %s: %s", request.trace_id, type(error).__name__, error
                )
            else:
                logger.exception("trace %s: exploring failed", request.trace_id)
            self._metrics.explorations.labels("failed").inc()
            self._lately.pop(self._prompt(exploration), None)
            self._not_remembered(request.trace_id, "exploring failed")
            return
        finally:
            took = time.monotonic() - begun
            self._rests_until = time.monotonic() + took * (1 / self._limits.time_share - 1)
        if request.episode is not None:
            self._agreed(request.trace_id, request.episode.answer_text)
        why_not = request.why_not_remembered(self._threshold)
        explored = {
            "reward_plain": result.plain.reward if result.plain else None,
            "reward_start": result.served.reward if result.served else None,
            "generated_tokens": result.usage.generated_tokens,
            "forward_tokens": result.usage.forward_tokens,
            "rows": measured,
        }
        if why_not is not None or request.episode is None:
            self._metrics.explorations.labels("discarded").inc()
            self._not_remembered(request.trace_id, why_not, explored=explored)
            return
        self._metrics.explorations.labels("remembered").inc()
        self._report(request.trace_id, {"explored": explored, "episode_id": request.episode.id})
        self._remember.submit(request.episode)

    def _count(self, tokens: int, tenant: str) -> None:
        self._metrics.explored_tokens.inc(tokens)
        self._spent.append((time.monotonic(), tokens, tenant))

    def _options(self, request: Request) -> Options:
        """Return how far the search goes: votes and time of its own, and no budget of the request's."""
        return replace(
            request.options,
            search="vote",
            steps=0,
            votes=self._limits.votes,
            budget_tokens=None,
            deadline_s=max(DEADLINE_S, request.options.deadline_s),
        )

    async def _answer(self, exploration: Exploration, key: Array, options: Options) -> SearchResult:
        """Return what was found, nothing where choices are scored; the request holds what to remember."""
        request, start = exploration.request, exploration.start
        if request.chooses:
            async with asyncio.timeout(options.deadline_s):
                await self._choose(request, key)
            return SearchResult("steps")
        session = Session(
            self._engine,
            self._scorer,
            request.prompt,
            start.latent,
            start.position,
            options,
            served=start.without.latent,
        )
        result = await session.run(Vote())
        self._count(result.usage.generated_tokens, exploration.tenant)
        request.result = result
        request.episode = episode_of(request, key, self._engine.space.id, start.latent, result)
        return result

    async def _measure(
        self, exploration: Exploration, key: Array, options: Options, result: SearchResult
    ) -> dict[str, float]:
        """Return the differences that rows made, by their id, and hand them over."""
        request, start = exploration.request, exploration.start
        prompt = request.prompt.token_ids
        comparisons = request.comparisons(key)
        if not comparisons or not (result.plain_answers or request.chooses):
            return {}
        given: dict[str | None, Sequence[Generation]] = {None: result.plain_answers}
        if request.prior is not None and start.without.mode == "prior":
            row = request.prior.row(key)
            given |= {row.id: result.served_answers} if row is not None else {}
        room = self._engine.max_model_len - len(prompt) - len(start.latent)
        try:
            async with asyncio.timeout(options.deadline_s):
                measured = await measure(
                    self._engine,
                    self._verifier,
                    request.prompt,
                    start.position,
                    comparisons,
                    given,
                    max_tokens=longest_answer(request.prompt, options, room),
                    seed=seed_of(request.prompt, options) + _OTHER_SEEDS,
                )
            self._count(measured.generated_tokens, exploration.tenant)
            priors = await self._priors_of(exploration.tenant)
            await priors.observe(prompt_digest(prompt), measured.differences)
            await self._people.measured(request.trace_id, exploration.tenant, measured.graded)
        except (EngineError, LatentRejectedError, LatentMemoryError, TimeoutError) as error:
            logger.warning(
                "trace %s: measuring failed: %s: %s", request.trace_id, type(error).__name__, error
            )
            self._metrics.measurements.labels("failed").inc()
            return {}
        for name, difference in measured.differences.items():
            evaluated("row", difference, latentevolve__row=name)
        self._metrics.measurements.labels("measured" if measured.differences else "no-label").inc()
        return dict(measured.differences)
