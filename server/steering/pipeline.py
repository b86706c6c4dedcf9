"""The day of one request: key, recall, transfer, refine, remember (arXiv 2509.24771).

Owns the order of the stages and every decision to do less. Knows neither HTTP nor vLLM; the answer that
the client gets is decoded elsewhere, from the outcome. Nothing but a request that cannot be served as
asked leaves here as an error: whatever fails, there is an answer, and the outcome says why it is plain.
"""

import asyncio
import hashlib
import logging
import random
from collections.abc import Sequence
from dataclasses import replace

import torch

from config.settings import SearchName, Settings
from memory.episode import TENANT, Array
from memory.evidence import weigh
from memory.registry import RegistryError
from memory.store import EpisodeStore, Neighbour, Recalled
from model.engine import Engine, EngineError, PlacementError, SteeredPrompt, UnsupportedError
from model.space import LatentRejectedError
from server.steering.call import Mode, Outcome, RenderedPrompt, SteeringOptions, SteeringRejectedError
from server.steering.choose import Choice, choose, say
from server.steering.explore import Exploration, Explorer, ExplorerLimits
from server.steering.metrics import Metrics
from server.steering.priors import ActivePrior, Serving
from server.steering.recall import Recall, RecallCounts
from server.steering.refiners.evolution import EvolutionRefiner
from server.steering.refiners.gradient import GradientRefiner
from server.steering.refiners.refiner import Limits, Refiner
from server.steering.refiners.vote import Vote
from server.steering.remember import Remember
from server.steering.rewards.scorer import VERIFIER, Scorer, parse_weights
from server.steering.rewards.verifier import Verifier
from server.steering.store_access import StoreAccess
from server.steering.traces import TraceLog
from server.steering.transfer import base_of, transfer
from server.steering.work import Work, episode_of, episode_of_choice

logger = logging.getLogger(__name__)

EXPLORE_DEADLINE_S = 600.0
"""Nobody waits for an exploration; this ends one whose engine hangs."""

_REASONS: dict[Mode, str] = {
    "recall": "recalled",
    "prior": "prior-covers",
    "recall+prior": "recalled-and-prior-covers",
}


class Steering:
    """Decides for each request whether a latent goes in, and which."""

    def __init__(
        self,
        engine: Engine,
        store: EpisodeStore,
        priors: ActivePrior,
        remember: Remember,
        traces: TraceLog,
        settings: Settings,
        *,
        metrics: Metrics,
    ) -> None:
        self._engine, self._priors = engine, priors
        self._remember, self._traces, self._settings, self._metrics = remember, traces, settings, metrics
        verifier = Verifier.of(settings, metrics)
        scorer = Scorer.of(settings.rewards, engine, verifier)
        vote = Vote(engine, scorer)
        self._searches: dict[SearchName, Refiner] = {
            "vote": vote,
            "evolution": EvolutionRefiner(engine, scorer),
        }
        self._verified = VERIFIER in parse_weights(settings.rewards)
        self.explorer = Explorer(
            engine,
            vote,
            self._remember_choice,
            verifier,
            priors,
            remember,
            traces.change,
            metrics,
            threshold=settings.remember_threshold,
            limits=ExplorerLimits(
                concurrency=settings.explore_concurrency,
                beside=settings.explore_beside,
                time_share=settings.explore_time_share,
                tokens_per_hour=settings.explore_tokens_per_hour,
            ),
        )
        if settings.twin:
            self._searches["gradient"] = GradientRefiner(engine, scorer)
        self._neutral = engine.neutral_latent()
        self._disabled: str | None = None
        self.counts = RecallCounts()
        self._store = StoreAccess(store, timeout_s=settings.recall_timeout_s)
        self._recall = Recall(self._store, engine.space, settings, metrics, self.counts)

    async def close(self) -> None:
        """Stop exploring and asking the store."""
        await self.explorer.close()
        self._store.close()

    def disable(self, check: str) -> None:
        """Answer every request plainly from now on, for the self-check of this name failed."""
        if self._disabled is None:
            self._disabled = check
            logger.error("steering is off: self-check %s failed", check)

    @property
    def disabled(self) -> str | None:
        """Name of the self-check that failed; None while steering works."""
        return self._disabled

    async def steer(self, prompt: RenderedPrompt, options: SteeringOptions, trace_id: str) -> Outcome:
        """Return what goes into the prompt, and why.

        Raises:
            SteeringRejectedError: the request asks for what cannot be done, naming the field. Then
                there is no trace and nothing is remembered.
        """
        search = self._search_of(options)
        work = Work(prompt, options, trace_id, await self._serving(options), search, self._metrics)
        try:
            outcome = await self._decide(work)
        except PlacementError:
            outcome = work.plain("no-place-for-latents")
        except LatentRejectedError as error:
            logger.error("trace %s: %s", trace_id, error)
            outcome = work.plain("latent-refused")
        except EngineError as error:
            logger.error("trace %s: %s: %s", trace_id, type(error).__name__, error)
            outcome = work.plain("engine-error")
        except SteeringRejectedError:
            raise
        except asyncio.CancelledError:
            self._metrics.count(work.plain("client-left"))  # vLLM ends what nobody waits for
            raise
        except Exception:
            logger.exception("trace %s: steering failed", trace_id)
            outcome = work.plain("steering-failed")
        self._finish(work, outcome)
        return outcome

    async def _serving(self, options: SteeringOptions) -> Serving | None:
        """Return what serves this request, which a swap from here on does not change."""
        if options.prior is None:
            return self._priors.serving()
        if options.prior == "none":
            return None
        try:
            named = await self._priors.get(options.prior)
        except RegistryError as error:
            raise SteeringRejectedError(f"latent.prior: {error}", "latent.prior") from error
        return Serving(named, named)

    def _search_of(self, options: SteeringOptions) -> Refiner:
        name = options.search or (self._settings.refiner if options.effort == "high" else "vote")
        if name not in self._searches and options.search is not None:
            raise SteeringRejectedError(
                f"latent.search: {name!r} needs the autograd twin, which this server runs without",
                "latent.search",
            )
        return self._searches.get(name, self._searches["evolution"])

    async def _decide(self, work: Work) -> Outcome:
        prompt, options = work.prompt, work.options
        if options.effort == "none":
            return work.plain("effort-none")
        if self._disabled is not None:
            return work.plain(f"self-check-failed:{self._disabled}")
        if not self._has_room(prompt):
            return work.plain("no-room")
        position = self._engine.position(prompt.token_ids)
        asks = options.effort in ("medium", "high")
        searches = asks and prompt.answers == 1
        several = "several-answers" if asks and not searches else None
        chooses = self._chooses(prompt)
        refines = searches and not chooses and work.refiner.name != "vote"
        explores = options.effort == "low" and options.store and self._explores(options)
        recalls = refines or self._recalls(options)
        remembers = recalls and await self._recall.is_filled(work)
        nothing = "memory-empty" if recalls else "recall-off"
        if not (remembers or searches or (work.prior and work.prior.rows)):
            nothing = (work.serving and work.serving.silence(None)) or nothing
            if explores:
                self._explore(work, None, self._neutral, position, work.plain(""))
            return work.plain(several or (nothing if work.store_answers else "store-unavailable"))

        with work.stage("key"):
            key: Array = (await self._engine.keys([prompt.token_ids]))[0].numpy()
        covered = work.prior is not None and work.prior.covers(key)
        recalled, near = await self._recall.near(work, key, covered=covered) if remembers else ([], [])
        nothing = "nothing-recalled" if recalls else "recall-off"
        if not work.store_answers:
            nothing = "store-unavailable"
        if work.serving is not None and not covered:
            nothing = work.serving.silence(key) or nothing
        if recalled and _harms(near, work.prior.version if work.prior else None):
            recalled, nothing = [], "recall-retired"
        if not (recalled or covered or searches or explores):
            return work.plain(several or nothing)

        with work.stage("transfer"):
            start = served = self._start(work, key, recalled, covered=covered)
            if recalled and not self._recalls(options):  # a search may begin there, but it is not served
                recalled, served = [], self._start(work, key, [], covered=covered)
        outcome = work.steered(served, position, recalled, covered)
        if outcome.mode == "plain":
            outcome = work.plain(several or nothing)
        else:
            reason = _REASONS[outcome.mode] if work.store_answers else "store-unavailable"
            outcome = replace(outcome, reason=reason)
        if searches and not chooses:
            limits = self._limits(work, start, served=outcome.latent is start)
            return await self._search(work, key, start, position, limits, outcome)
        if explores:
            self._explore(work, key, start, position, outcome)
        if chooses and (searches or outcome.mode == "prior"):
            return await self._choose(work, key, outcome, searches=searches)
        return outcome

    def _start(self, work: Work, key: Array, recalled: Sequence[Recalled], *, covered: bool) -> torch.Tensor:
        """Return the latent, (L, d), that prior and recalled episodes lead to."""
        start = transfer(
            key,
            recalled,
            base_of(work.prior, self._neutral),
            temperature=self._settings.recall_temperature,
            clamp=self._settings.delta_norm_clamp,
        )
        return self._engine.space.check(start, work.prior.space if work.prior and covered else None)

    def _chooses(self, prompt: RenderedPrompt) -> bool:
        """Return whether the probabilities of a request's choices say what is right, and no verifier does."""
        return bool(prompt.scored_choices) and prompt.answers == 1 and not self._verified

    async def _choose(self, work: Work, key: Array, served: Outcome, *, searches: bool) -> Outcome:
        """Return the likeliest choice: behind what is `served`, else calibrated."""
        row = served.mode == "prior"  # recalled latents are no reason not to calibrate
        steered = SteeredPrompt(
            work.prompt.token_ids, served.latent if row else None, served.position if row else None
        )
        try:
            with work.stage("choose"):
                async with asyncio.timeout(work.options.deadline_s or self._settings.refine_deadline_s):
                    choice = await self._chosen(work, key, steered, remembered=searches)
                    answer = await say(self._engine, work.prompt, steered, choice.text)
        except (EngineError, TimeoutError) as error:
            logger.error("trace %s: choosing failed: %s: %s", work.trace_id, type(error).__name__, error)
            late = isinstance(error, TimeoutError)
            return replace(served, reason=work.noting("deadline" if late else "search-failed"))
        if searches:
            self._keep_choice(work, key, choice)
        if row:
            return replace(served, answer=answer)
        return replace(
            served,
            mode="calibrated",
            reason=work.noting("choices"),
            latent=None,
            position=None,
            answer=answer,
            episode_ids=(),
            similarities=(),
        )

    async def _chosen(self, work: Work, key: Array, steered: SteeredPrompt, *, remembered: bool) -> Choice:
        known = await self._recall.alike(work, key) if steered.latent is None else []
        strength = self._settings.choice_calibration
        return await choose(self._engine, work.prompt, steered, known, strength, remembered=remembered)

    async def _remember_choice(self, work: Work, key: Array) -> None:
        plain = SteeredPrompt(work.prompt.token_ids)
        self._keep_choice(work, key, await self._chosen(work, key, plain, remembered=True))

    def _keep_choice(self, work: Work, key: Array, choice: Choice) -> None:
        work.choice = choice
        tokens = self._engine.answer_tokens(choice.text)
        work.episode = episode_of_choice(
            work, key, self._engine.space.id, TENANT, self._neutral, tokens, choice
        )

    def _recalls(self, options: SteeringOptions) -> bool:
        """Return whether a request at effort low is served what similar ones remember."""
        return self._settings.low_recalls or options.k is not None or options.floor is not None

    def _explores(self, options: SteeringOptions) -> bool:
        if options.explore is not None:
            return options.explore
        return random.random() < self._settings.explore_share

    def _explore(
        self, work: Work, key: Array | None, start: torch.Tensor, position: int, outcome: Outcome
    ) -> None:
        limits = self._limits(work, start, served=outcome.mode != "plain")
        row = None
        if work.prior is not None and key is not None and outcome.mode == "prior":
            row = work.prior.row(key)
        exploration = Exploration(
            work,
            key,
            start,
            row.id if row else None,
            position,
            limits,
            self._chooses(work.prompt),
            work.options.explore is True,
            self._engine.space.id,
            TENANT,
        )
        work.explores = self.explorer.submit(exploration)

    def _has_room(self, prompt: RenderedPrompt) -> bool:
        """Return whether latents leave the answer all the tokens that it would get of bare vLLM.

        Where the request asks for no number, the context is the limit with and without latents; then an
        answer as long as refining decodes must fit.
        """
        room = self._engine.max_model_len - len(prompt.token_ids)
        asked = prompt.asked_tokens
        needed = self._settings.refine_max_tokens if asked is None else min(asked, room)
        return needed + self._engine.space.length <= room

    async def _search(
        self,
        work: Work,
        key: Array,
        start: torch.Tensor,
        position: int,
        limits: Limits,
        without: Outcome,
    ) -> Outcome:
        """Return the answer that a search gives; `without` one what would be served anyway."""
        try:
            with work.stage("refine"):
                result = await work.refiner.refine(work.prompt, start, position, limits)
        except UnsupportedError as error:
            if work.refiner.name == "gradient":
                self._searches.pop("gradient", None)
                logger.error("the gradient refiner is off: %s", error)
            if work.options.search == "gradient":
                raise SteeringRejectedError(f"latent.search: {error}", "latent.search") from error
            return replace(without, reason=work.noting("refiner-unsupported"))
        except (EngineError, LatentRejectedError) as error:
            logger.error("trace %s: searching failed: %s: %s", work.trace_id, type(error).__name__, error)
            return replace(without, reason=work.noting("search-failed"))
        work.result = result
        if result.reward_before is None:
            return replace(without, reason=work.noting(result.stopped), usage=result.usage)
        early = (
            f"-until-{result.stopped}"
            if result.stopped in ("budget", "deadline", "engine-error", "signal-lost")
            else ""
        )
        work.episode = episode_of(
            work, key, self._engine.space.id, TENANT, start, limits.start_is_served, result
        )
        measured = replace(without, reward_before=result.reward_before, usage=result.usage)
        elected = result.elected
        if elected is None:
            return replace(measured, reason=work.noting(f"no-agreement{early}"))
        return replace(
            measured,
            mode="refined" if elected.refined else "voted",
            reason=work.noting(("improved" if elected.refined else "agreed") + early),
            reward_after=elected.scored.reward,
            latent=elected.latent,
            position=None if elected.latent is None else position,
            answer=elected.answer,
        )

    def _limits(self, work: Work, start: torch.Tensor, *, served: bool) -> Limits:
        """Return how far a search may go; an exploration has its own votes and time, and no budget."""
        options, settings, prompt = work.options, self._settings, work.prompt
        room = self._engine.max_model_len - len(prompt.token_ids) - len(start)
        explores = options.effort == "low"
        votes = {
            "low": settings.explore_rollouts,
            "medium": settings.medium_votes,
            "high": settings.high_votes,
        }
        work.seed = _seed(work.prompt, options)
        return Limits(
            steps=options.steps or settings.high_steps,
            votes=votes[options.effort],
            population=settings.population,
            max_tokens=min(prompt.decoding.max_tokens, settings.refine_max_tokens, room),
            seed=work.seed,
            deadline_s=max(EXPLORE_DEADLINE_S, options.deadline_s or 0.0)
            if explores
            else options.deadline_s or settings.refine_deadline_s,
            budget_tokens=None if explores else options.budget_tokens,
            vote_tokens=min(settings.vote_tokens, room),
            start_is_served=served,
        )

    def _finish(self, work: Work, outcome: Outcome) -> None:
        """Count, log, trace and remember: nothing here waits."""
        self._metrics.count(outcome)
        logger.info(
            "trace %s: %s, %s, prior %s", work.trace_id, outcome.mode, outcome.reason, outcome.prior_version
        )
        why_not = None if work.explores else work.why_not_remembered(self._settings.remember_threshold)
        self._traces.record(work.trace(outcome, self._engine.space.id, why_not))
        if why_not is None and work.episode is not None and not work.explores:
            self._remember.submit(work.episode)


def _harms(near: Sequence[Neighbour], prior_version: str | None) -> bool:
    """Return whether steering is proven to have lowered rewards nearby, under the prior that serves here."""
    lifts = [
        found.start_lift
        for found in near
        if found.start_lift is not None and found.prior_version == prior_version
    ]
    return weigh(lifts).standing == "retired"


def _seed(prompt: RenderedPrompt, options: SteeringOptions) -> int:
    """Return the request's seed, or one that its prompt fixes, so that a request can be repeated."""
    for seed in (options.seed, prompt.decoding.seed):
        if seed is not None:
            return seed % 2**32
    return int.from_bytes(hashlib.sha256(repr(prompt.token_ids).encode()).digest()[:4], "big")
