"""The day of one request: start, search, remember (arXiv 2509.24771).

Owns the order of the stages and every decision to do less. Knows neither HTTP nor vLLM; the answer that
the client gets is decoded elsewhere, from the outcome. Nothing but a request that cannot be served as
asked leaves here as an error: whatever fails, there is an answer, and the outcome says why it is plain.
"""

import asyncio
import logging
from dataclasses import replace

from config.settings import Settings
from memory.episode import Array, prompt_digest
from memory.registry import RegistryError
from memory.store import EpisodeStore
from model.engine import Engine, EngineError, SteeredPrompt, UnsupportedError
from model.space import LatentRejectedError
from server.steering.active_prior import PriorsOf, Serving
from server.steering.experiment import Experiment
from server.steering.explore import Exploration, Explorer, ExplorerLimits
from server.steering.metrics import Metrics
from server.steering.new_episode import episode_of, episode_of_choice
from server.steering.outcome import Answer, Assignment, Outcome, reason_of
from server.steering.people import People
from server.steering.prompt import Options, RenderedPrompt, SteeringRejectedError, no_gradient
from server.steering.recall import Recall
from server.steering.remember import Remember
from server.steering.request import Request
from server.steering.rewards.scorer import VERIFIER, Scorer, parse_weights
from server.steering.rewards.verifier import Verifier
from server.steering.search.choose import Choice, choose, say
from server.steering.search.evolution import Evolution
from server.steering.search.gradient import Gradient
from server.steering.search.result import Search
from server.steering.search.session import Session
from server.steering.search.vote import Vote
from server.steering.start import Start, Starts
from server.steering.store_access import StoreAccess
from server.steering.traces import TraceLog
from server.tracing import current

logger = logging.getLogger(__name__)


class Steering:
    """Decides for each request whether a latent goes in, and which."""

    def __init__(
        self,
        engine: Engine,
        store: EpisodeStore,
        priors_of: PriorsOf,
        remember: Remember,
        traces: TraceLog,
        settings: Settings,
        *,
        metrics: Metrics,
        experiment: Experiment | None = None,
    ) -> None:
        self._engine, self._priors_of, self._experiment = engine, priors_of, experiment
        self._remember, self._traces, self._settings, self._metrics = remember, traces, settings, metrics
        verifier = Verifier.of(settings, metrics)
        self._scorer = Scorer.of(settings.rewards, verifier)
        self._verified = VERIFIER in parse_weights(settings.rewards)
        self._searches: dict[str, Search] = {"vote": Vote(), "evolution": Evolution()}
        if settings.gradient_worker:
            self._searches["gradient"] = Gradient()
        self.people = People(traces, priors_of)
        self.explorer = Explorer(
            engine,
            self._scorer,
            self._choose_to_remember,
            verifier,
            priors_of,
            self.people,
            remember,
            traces.change,
            metrics,
            threshold=settings.remember_threshold,
            limits=ExplorerLimits(
                concurrency=settings.explore_concurrency,
                beside=settings.explore_beside,
                time_share=settings.explore_time_share,
                tokens_per_hour=settings.explore_tokens_per_hour,
                votes=settings.explore_rollouts,
            ),
            agreed=experiment.agreed if experiment else lambda *_: None,
        )
        self._disabled: str | None = None
        self._store = StoreAccess(store, timeout_s=settings.recall_timeout_s)
        self._recall = Recall(self._store, engine.space, metrics)
        self._starts = Starts(engine, self._recall, settings)

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

    def answered(self, trace_id: str, answer: Answer) -> None:
        """Take the answer that was decoded for a request, and return at once."""
        self._traces.answered(trace_id, answer)
        if self._experiment is not None:
            self._experiment.answered(trace_id, answer)

    async def steer(self, prompt: RenderedPrompt, options: Options, trace_id: str) -> Outcome:
        """Return what goes into the prompt, and why.

        Raises:
            SteeringRejectedError: the request asks for what cannot be done, naming the field. Then
                there is no trace and nothing is remembered.
        """
        chooses = bool(prompt.scored_choices) and prompt.answers == 1 and not self._verified
        request = Request(prompt, options, trace_id, await self._serving(options), chooses, self._metrics)
        try:
            outcome = await self._answer(request)
        except SteeringRejectedError:
            raise
        except Exception as error:
            outcome = request.plain(reason_of(error, trace_id))
        self._finish(request, outcome)
        return outcome

    async def _answer(self, request: Request) -> Outcome:
        search = self._search_of(request.options)
        untouched = self._why_untouched(request)
        if untouched is not None:
            return request.plain(untouched)
        start = await self._starts.find(request)
        request.assignment = self._assign(request, start)
        held_out = request.assignment is not None and request.assignment.arm == "holdout"
        explores = request.options.explore if request.options.effort == "low" else held_out
        if explores and request.options.store:
            request.explored = self.explorer.submit(Exploration(request, start))
        if held_out:
            return request.plain("holdout")
        if request.chooses and start.key is not None and (request.searches or start.without.mode == "prior"):
            return await self._choose(request, start.key, start.without)
        if request.searches and start.key is not None:
            return await self._search(request, start.key, start, search)
        return start.without

    def _why_untouched(self, request: Request) -> str | None:
        if request.options.effort == "none":
            return "effort-none"
        if self._disabled is not None:
            return f"self-check-failed:{self._disabled}"
        if self._experiment is not None and self._experiment.off(request.options.tenant):
            return "steering-off"
        return None if self._has_room(request.prompt) else "no-room"

    def _assign(self, request: Request, start: Start) -> Assignment | None:
        """Return the arm of a request that would be steered, and has not said itself how it wants to be."""
        options = request.options
        steered = start.without.latent is not None or request.searches
        if self._experiment is None or not steered or options.effort_source != "default" or options.given:
            return None
        digest = prompt_digest(request.prompt.token_ids)
        assignment = self._experiment.assign(options.tenant, options.who, digest)
        if assignment is not None and request.prompt.answers == 1:
            choices = request.prompt.decoding.choices
            self._experiment.begin(request.trace_id, options.tenant, assignment, choices)
        return assignment

    async def _serving(self, options: Options) -> Serving | None:
        """Return what serves this request, which a swap from here on does not change."""
        if options.prior == "none":
            return None
        priors = await self._priors_of(options.tenant)
        if options.prior is None:
            return priors.serving()
        try:
            named = await priors.get(options.prior)
        except RegistryError as error:
            raise SteeringRejectedError(f"latent.prior: {error}", "latent.prior") from error
        return Serving(named, named)

    def _search_of(self, options: Options) -> Search:
        if options.search not in self._searches and "search" in options.given:
            raise no_gradient()  # it was there when the server started
        return self._searches.get(options.search, self._searches["evolution"])

    def _has_room(self, prompt: RenderedPrompt) -> bool:
        """Return whether latents leave the answer all the tokens that it would get of bare vLLM.

        Where the request asks for no number, the context is the limit with and without latents; then an
        answer as long as a search decodes must fit.
        """
        room = self._engine.max_model_len - len(prompt.token_ids)
        asked = prompt.asked_tokens
        needed = self._settings.search_max_tokens if asked is None else min(asked, room)
        return needed + self._engine.space.length <= room

    async def _search(self, request: Request, key: Array, start: Start, search: Search) -> Outcome:
        """Return the answer that a search gives, what would be served anyway where it gives none."""
        without = start.without
        request.search = search.name
        session = Session(
            self._engine,
            self._scorer,
            request.prompt,
            start.latent,
            start.position,
            request.options,
            served=without.latent,
        )
        try:
            with request.stage("search"):
                result = await session.run(search)
                current().set_attributes(
                    {
                        "latentevolve.search": search.name,
                        "latentevolve.stopped": result.stopped,
                        "latentevolve.generated_tokens": result.usage.generated_tokens,
                    }
                )
        except UnsupportedError as error:
            if search.name == "gradient":
                self._searches.pop("gradient", None)
                logger.error("searching by gradient is off: %s", error)
                if "search" in request.options.given:
                    raise SteeringRejectedError(f"latent.search: {error}", "latent.search") from error
            return replace(without, reason=request.noting("search-unsupported"))
        except (EngineError, LatentRejectedError) as error:
            logger.error("trace %s: searching failed: %s: %s", request.trace_id, type(error).__name__, error)
            return replace(without, reason=request.noting("search-failed"))
        request.result = result
        if result.plain is None and result.elected is None:
            return replace(without, reason=request.noting(result.stopped), usage=result.usage)
        early = (
            f"-until-{result.stopped}"
            if result.stopped in ("budget", "deadline", "engine-error", "signal-lost")
            else ""
        )
        request.episode = episode_of(request, key, self._engine.space.id, start.latent, result)
        before = result.plain.reward if result.plain else None
        measured = replace(without, reward_before=before, usage=result.usage)
        elected = result.elected
        if elected is None:
            return replace(measured, reason=request.noting(f"no-agreement{early}"))
        return replace(
            measured,
            mode="refined" if elected.refined else "voted",
            reason=request.noting(("improved" if elected.refined else "agreed") + early),
            reward_after=elected.reward,
            latent=elected.latent,
            position=None if elected.latent is None else start.position,
            answer=elected.answer,
        )

    async def _choose(self, request: Request, key: Array, served: Outcome) -> Outcome:
        """Return the likeliest choice: behind what is `served`, else calibrated."""
        row = served.mode == "prior"  # recalled latents are no reason not to calibrate
        steered = SteeredPrompt(
            request.prompt.token_ids, served.latent if row else None, served.position if row else None
        )
        try:
            with request.stage("choose"):
                async with asyncio.timeout(request.options.deadline_s):
                    choice = await self._chosen(request, key, steered, remembered=request.searches)
                    answer = await say(self._engine, request.prompt, steered, choice.text)
        except (EngineError, TimeoutError) as error:
            logger.error("trace %s: choosing failed: %s: %s", request.trace_id, type(error).__name__, error)
            late = isinstance(error, TimeoutError)
            return replace(served, reason=request.noting("deadline" if late else "search-failed"))
        if request.searches:
            self._keep_choice(request, key, choice)
        if row:
            return replace(served, answer=answer)
        return replace(
            served,
            mode="calibrated",
            reason=request.noting("choices"),
            latent=None,
            position=None,
            answer=answer,
            episode_ids=(),
            similarities=(),
            reward_before=choice.plain_probability,
            reward_after=choice.probability,
        )

    async def _chosen(
        self, request: Request, key: Array, steered: SteeredPrompt, *, remembered: bool
    ) -> Choice:
        known = await self._recall.alike(request, key) if steered.latent is None else []
        strength = self._settings.choice_calibration
        return await choose(self._engine, request.prompt, steered, known, strength, remembered=remembered)

    async def _choose_to_remember(self, request: Request, key: Array) -> None:
        plain = SteeredPrompt(request.prompt.token_ids)
        self._keep_choice(request, key, await self._chosen(request, key, plain, remembered=True))

    def _keep_choice(self, request: Request, key: Array, choice: Choice) -> None:
        request.choice = choice
        request.episode = episode_of_choice(request, key, self._engine, choice)

    def _finish(self, request: Request, outcome: Outcome) -> None:
        """Log, trace and remember: nothing here waits."""
        logger.info(
            "trace %s: %s, %s, prior %s",
            request.trace_id,
            outcome.mode,
            outcome.reason,
            outcome.prior_version,
        )
        threshold = self._settings.remember_threshold
        why_not = None if request.explored else request.why_not_remembered(threshold)
        self._traces.record(request.trace(outcome, self._engine.space.id, why_not))
        if self._experiment is not None and outcome.answer is not None:
            self._experiment.answered(request.trace_id, Answer.of(outcome.answer))
        if why_not is None and request.episode is not None and not request.explored:
            self._remember.submit(request.episode)
