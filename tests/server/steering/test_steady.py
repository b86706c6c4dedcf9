"""A refinement compares like with like: a signal that comes or goes on the way changes no verdict."""

from collections.abc import Sequence

import pytest

from model.engine import Generation
from model.scripted_engine import ScriptedEngine
from server.steering.call import RenderedPrompt
from server.steering.refiners.evolution import EvolutionRefiner
from server.steering.refiners.gradient import GradientRefiner
from server.steering.refiners.refiner import Limits, RefineResult
from server.steering.refiners.steady import SteadyScorer
from server.steering.rewards.confidence import Confidence
from server.steering.rewards.reward import SignalUnavailableError
from server.steering.rewards.scorer import Scorer
from tests.server.steering.fakes import answer, rendered

both = pytest.mark.parametrize("make", [EvolutionRefiner, GradientRefiner])


class Outside:
    """A strict signal that finds every answer wrong, and can be had in the calls of these numbers only."""

    name = "outside"
    tokens_per_answer = 0

    def __init__(self, there: range) -> None:
        self.there, self.calls = there, 0

    async def score(
        self, prompt: RenderedPrompt, answers: Sequence[Generation], pool: Sequence[Generation]
    ) -> list[float | None]:
        self.calls += 1
        if self.calls not in self.there:
            raise SignalUnavailableError(self.name)
        return [0.0] * len(answers)


async def refine(make: type, outside: Outside) -> RefineResult:
    engine = ScriptedEngine(steepness=1.0, hidden_size=16)
    prompt = rendered(engine)
    limits = Limits(steps=6, votes=8, population=8, max_tokens=32, seed=0, deadline_s=60.0)
    scorer = Scorer([(Confidence(), 0.5), (outside, 0.5)])
    start, position = engine.neutral_latent(), engine.position(prompt.token_ids)
    result: RefineResult = await make(engine, scorer).refine(prompt, start, position, limits)
    return result


@both
async def test_signal_that_is_lost_ends_a_refinement_with_its_best(make: type) -> None:
    result = await refine(make, outside := Outside(range(1, 3)))
    assert (result.stopped, result.unavailable, outside.calls) == ("signal-lost", ("outside",), 3)
    assert result.reward_after is not None
    # Half of the weight is on a signal that said 0; without it an answer could seem twice as good.
    assert result.reward_after <= 0.5
    assert "outside" in result.signals_after


@both
async def test_signal_that_is_missing_at_first_is_left_out_to_the_end(make: type) -> None:
    result = await refine(make, outside := Outside(range(2, 99)))
    assert (result.unavailable, outside.calls) == (("outside",), 1)
    assert result.stopped != "signal-lost"
    assert len(result.steps) > 1
    assert "outside" not in result.signals_after


@both
async def test_refinements_do_not_inherit_what_another_one_lost(make: type) -> None:
    engine = ScriptedEngine(steepness=1.0, hidden_size=16)
    outside = Outside(range(2, 99))
    refiner = make(engine, Scorer([(Confidence(), 0.5), (outside, 0.5)]))
    prompt = rendered(engine)
    limits = Limits(steps=1, votes=2, population=2, max_tokens=32, seed=0, deadline_s=60.0)
    start, position = engine.neutral_latent(), engine.position(prompt.token_ids)
    first, second = [await refiner.refine(prompt, start, position, limits) for _ in range(2)]
    assert (first.unavailable, second.unavailable) == (("outside",), ())


async def test_steady_scorer_scores_as_the_one_it_is_made_of() -> None:
    engine = ScriptedEngine()
    plain = Scorer([(Confidence(), 0.5), (Outside(range(1, 99)), 0.5)])
    given = [answer("5", logprobs=(0.0,))]
    prompt = rendered(engine)
    assert await SteadyScorer(plain).score(prompt, given, []) == await plain.score(prompt, given, [])
    assert SteadyScorer(plain).tokens_per_answer == plain.tokens_per_answer


@both
async def test_usage_counts_what_the_judge_reads(make: type) -> None:
    engine = ScriptedEngine(steepness=1.0, hidden_size=16)
    prompt = rendered(engine)
    limits = Limits(steps=1, votes=2, population=2, max_tokens=8, seed=0, deadline_s=60.0)
    refiner = make(engine, Scorer.of("judge=0.5,confidence=0.5", engine))
    position = engine.position(prompt.token_ids)
    result = await refiner.refine(prompt, engine.neutral_latent(), position, limits)
    asked = [pair for call in engine.calls for pair in zip(call.prompts, call.latents, strict=True)]
    judged = [len(tokens) for tokens, _ in asked if tokens != prompt.token_ids]
    behind = [len(tokens) - position + len(latent) for tokens, latent in asked if latent is not None]
    assert len(judged) > len(behind) > 1
    # The prompt once, for its cache is kept; latents and what stands behind them each time.
    assert result.usage.prompt_tokens == len(prompt.token_ids) + sum(behind) + sum(judged)


class Late:
    """A signal that has nothing to say of the first answers."""

    name = "late"
    tokens_per_answer = 0

    def __init__(self, silent: int) -> None:
        self.left = silent

    async def score(
        self, prompt: RenderedPrompt, answers: Sequence[Generation], pool: Sequence[Generation]
    ) -> list[float | None]:
        self.left -= 1
        return [None if self.left >= 0 else 1.0] * len(answers)


async def test_signal_that_says_something_later_only_changes_no_verdict() -> None:
    scorer = SteadyScorer(Scorer([(Late(1), 0.9), (Confidence(), 0.1)]))
    prompt = rendered(ScriptedEngine())
    (first,) = await scorer.score(prompt, [answer("1", logprobs=(-0.1,))], [])
    (second,) = await scorer.score(prompt, [answer("2", logprobs=(-0.2,))], [])
    assert second.reward < first.reward
    assert (set(second.signals), scorer.unavailable) == ({"confidence"}, ())
