"""A refinement compares like with like: a signal that comes or goes on the way changes no verdict."""

from collections.abc import Sequence

import pytest

from model.engine import Generation
from server.steering.prompt import RenderedPrompt
from server.steering.rewards.confidence import Confidence
from server.steering.rewards.reward import SignalUnavailableError
from server.steering.rewards.scorer import Scorer
from server.steering.search.evolution import Evolution
from server.steering.search.gradient import Gradient
from server.steering.search.result import Search, SearchResult
from server.steering.search.session import Session
from tests.scripted_engine import ScriptedEngine
from tests.server.steering.fakes import answer, options, rendered

both = pytest.mark.parametrize("search", [Evolution(), Gradient()])


class Outside:
    """A strict signal that finds every answer wrong, and can be had in the calls of these numbers only."""

    name = "outside"

    def __init__(self, there: range) -> None:
        self.there, self.calls = there, 0

    async def score(
        self, prompt: RenderedPrompt, answers: Sequence[Generation], pool: Sequence[Generation]
    ) -> list[float | None]:
        self.calls += 1
        if self.calls not in self.there:
            raise SignalUnavailableError(self.name)
        return [0.0] * len(answers)


async def run(search: Search, outside: Outside, steps: int = 6, votes: int = 8) -> SearchResult:
    engine = ScriptedEngine(steepness=1.0, hidden_size=16)
    prompt = rendered(engine)
    limits = options("high", steps=steps, votes=votes, population=votes, seed=0)
    scorer = Scorer([(Confidence(), 0.5), (outside, 0.5)])
    start, position = engine.neutral_latent(), engine.position(prompt.token_ids)
    return await Session(engine, scorer, prompt, start, position, limits, served=None).run(search)


@both
async def test_signal_that_is_lost_ends_a_refinement_with_its_best(search: Search) -> None:
    result = await run(search, outside := Outside(range(1, 3)))
    assert (result.stopped, result.unavailable, outside.calls) == ("signal-lost", ("outside",), 3)
    assert result.best is not None
    # Half of the weight is on a signal that said 0; without it an answer could seem twice as good.
    assert result.best.reward <= 0.5
    assert "outside" in result.best.scored.signals


@both
async def test_signal_that_is_missing_at_first_is_left_out_to_the_end(search: Search) -> None:
    result = await run(search, outside := Outside(range(2, 99)))
    assert (result.unavailable, outside.calls) == (("outside",), 1)
    assert result.stopped != "signal-lost"
    assert len(result.steps) > 1
    assert "outside" not in result.best.scored.signals


@both
async def test_searches_do_not_inherit_what_another_one_lost(search: Search) -> None:
    outside = Outside(range(2, 99))
    first, second = [await run(search, outside, steps=1, votes=2) for _ in range(2)]
    assert (first.unavailable, second.unavailable) == (("outside",), ())


class Late:
    """A signal that has nothing to say of the first answers."""

    name = "late"

    def __init__(self, silent: int) -> None:
        self.left = silent

    async def score(
        self, prompt: RenderedPrompt, answers: Sequence[Generation], pool: Sequence[Generation]
    ) -> list[float | None]:
        self.left -= 1
        return [None if self.left >= 0 else 1.0] * len(answers)


async def test_signal_that_says_something_later_only_changes_no_verdict() -> None:
    scorer = Scorer([(Late(1), 0.9), (Confidence(), 0.1)])
    prompt = rendered(ScriptedEngine())
    (first,) = await scorer.score(prompt, [answer("1", logprobs=(-0.1,))], [])
    (second,) = await scorer.score(prompt, [answer("2", logprobs=(-0.2,))], [], only=first.signals.keys())
    assert second.reward < first.reward
    assert (set(second.signals), second.unavailable) == ({"confidence"}, ())
