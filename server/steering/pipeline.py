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

from config.settings import RefinerName, Settings
from memory.episode import TENANT, Array
from memory.evidence import weigh
from memory.registry import RegistryError
from memory.store import EpisodeStore, Neighbour
from model.engine import Engine, EngineError, PlacementError, UnsupportedError
from model.space import LatentRejectedError
from server.steering.call import Mode, Outcome, RenderedPrompt, SteeringOptions, SteeringRejectedError
from server.steering.explore import Exploration, Explorer
from server.steering.metrics import Metrics
from server.steering.priors import ActivePrior, Serving
from server.steering.recall import Recall, RecallCounts
from server.steering.refiners.evolution import EvolutionRefiner
from server.steering.refiners.gradient import GradientRefiner
from server.steering.refiners.refiner import Limits, Refiner, RefineResult
from server.steering.remember import Remember
from server.steering.rewards.scorer import Scorer
from server.steering.rewards.verifier import Verifier
from server.steering.store_access import StoreAccess
from server.steering.traces import TraceLog
from server.steering.transfer import base_of, transfer
from server.steering.work import Work, episode_of

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
        evolution = EvolutionRefiner(engine, scorer)
        self._refiners: dict[RefinerName, Refiner] = {"evolution": evolution}
        self.explorer = Explorer(
            engine,
            evolution,
            verifier,
            priors,
            remember,
            traces.change,
            metrics,
            threshold=settings.remember_threshold,
            concurrency=settings.explore_concurrency,
        )
        if settings.twin:
            self._refiners["gradient"] = GradientRefiner(engine, scorer)
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
        refiner = self._refiner(options)
        work = Work(prompt, options, trace_id, await self._serving(options), refiner, self._metrics)
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

    def _refiner(self, options: SteeringOptions) -> Refiner:
        name = options.refiner or self._settings.refiner
        if name not in self._refiners and options.refiner is not None:
            raise SteeringRejectedError(
                f"latent.refiner: {name!r} needs the autograd twin, which this server runs without",
                "latent.refiner",
            )
        return self._refiners.get(name, self._refiners["evolution"])

    async def _decide(self, work: Work) -> Outcome:
        prompt, options = work.prompt, work.options
        if options.effort == "none":
            return work.plain("effort-none")
        if self._disabled is not None:
            return work.plain(f"self-check-failed:{self._disabled}")
        if not self._has_room(prompt):
            return work.plain("no-room")
        position = self._engine.position(prompt.token_ids)
        refines = options.effort in ("medium", "high")
        explores = options.effort == "low" and options.store and self._explores(options)
        recalls = refines or self._recalls(options)
        remembers = recalls and await self._recall.is_filled(work)
        nothing = "memory-empty" if recalls else "recall-off"
        if not (remembers or refines or explores or (work.prior and work.prior.rows)):
            return work.plain(nothing if work.store_answers else "store-unavailable")

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
        if not (recalled or covered or refines or explores):
            return work.plain(nothing)

        with work.stage("transfer"):
            start = transfer(
                key,
                recalled,
                base_of(work.prior, self._neutral),
                temperature=self._settings.recall_temperature,
                clamp=self._settings.delta_norm_clamp,
            )
            start = self._engine.space.check(start, work.prior.space if work.prior and covered else None)
        outcome = work.steered(start, position, recalled, covered)
        if refines:
            return await self._refine(work, key, start, outcome)
        if explores:
            self._explore(work, key, start, outcome)
        if outcome.mode == "plain":
            return work.plain(nothing)
        return replace(outcome, reason=_REASONS[outcome.mode] if work.store_answers else "store-unavailable")

    def _recalls(self, options: SteeringOptions) -> bool:
        """Return whether a request at effort low is served what similar ones remember."""
        return self._settings.low_recalls or options.k is not None or options.floor is not None

    def _explores(self, options: SteeringOptions) -> bool:
        if options.explore is not None:
            return options.explore
        return random.random() < self._settings.explore_share

    def _explore(self, work: Work, key: Array, start: torch.Tensor, outcome: Outcome) -> None:
        assert outcome.position is not None
        limits = self._limits(work, start, served=outcome.mode != "plain")
        row = work.prior.row(key) if work.prior and outcome.mode == "prior" else None
        exploration = Exploration(
            work, key, start, row.id if row else None, outcome.position, limits, self._engine.space.id, TENANT
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

    async def _refine(self, work: Work, key: Array, start: torch.Tensor, recalled: Outcome) -> Outcome:
        """Return the best of doing nothing, what was recalled (`recalled`, with `start`) and refining."""
        assert recalled.position is not None
        served = recalled.mode != "plain"
        without = recalled if served else work.plain("")
        try:
            with work.stage("refine"):
                result = await work.refiner.refine(
                    work.prompt, start, recalled.position, self._limits(work, start, served=served)
                )
        except UnsupportedError as error:
            if work.refiner.name == "gradient":
                self._refiners.pop("gradient", None)
                logger.error("the gradient refiner is off: %s", error)
            if work.options.refiner == "gradient":
                raise SteeringRejectedError(f"latent.refiner: {error}", "latent.refiner") from error
            return replace(without, reason=work.noting("refiner-unsupported"))
        except (EngineError, LatentRejectedError) as error:
            logger.error("trace %s: refining failed: %s: %s", work.trace_id, type(error).__name__, error)
            return replace(without, reason=work.noting("refining-failed"))
        work.result = result
        early = (
            f"-until-{result.stopped}"
            if result.stopped in ("budget", "deadline", "engine-error", "signal-lost")
            else ""
        )
        if result.reward_before is None:
            return replace(without, reason=work.noting(result.stopped), usage=result.usage)
        measured = replace(
            without,
            reward_before=result.reward_before,
            reward_after=result.reward_after,
            usage=result.usage,
        )
        work.episode = episode_of(work, key, self._engine.space.id, TENANT, start, served, result)
        if result.latent is None:
            return self._unimproved(work, measured, result, work.noting(f"not-improved{early}"))
        if result.from_start and served:
            best = replace(recalled, reward_before=result.reward_before, usage=result.usage)
            return replace(
                best, reward_after=result.reward_after, reason=work.noting(f"start-is-best{early}")
            )
        return replace(
            measured,
            mode="refined",
            reason=work.noting(f"improved{early}"),
            latent=self._engine.space.check(result.latent),
            position=recalled.position,
        )

    def _unimproved(self, work: Work, measured: Outcome, result: RefineResult, reason: str) -> Outcome:
        """Keep what was recalled only while it is no worse than the unsteered answer."""
        assert result.reward_before is not None
        assert result.reward_start is not None
        if measured.latent is not None and result.reward_start >= result.reward_before:
            return replace(measured, reason=reason, reward_after=result.reward_start)
        return replace(
            measured,
            mode="plain",
            reason=reason,
            latent=None,
            position=None,
            episode_ids=(),
            similarities=(),
        )

    def _limits(self, work: Work, start: torch.Tensor, *, served: bool) -> Limits:
        """Return how far refining may go; an exploration takes no steps and samples more."""
        options, settings, prompt = work.options, self._settings, work.prompt
        room = self._engine.max_model_len - len(prompt.token_ids) - len(start)
        steps = {"low": 0, "medium": settings.medium_steps, "high": settings.high_steps}[options.effort]
        explores = options.effort == "low"
        work.seed = _seed(work.prompt, options)
        return Limits(
            steps=0 if explores else options.steps or steps,
            population=settings.explore_rollouts if explores else settings.population,
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
        if why_not is None and work.episode is not None:
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
