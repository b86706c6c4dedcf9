"""Searches: they improve what can be improved, and keep to budget, deadline and seed."""

import asyncio
import random
from dataclasses import replace
from statistics import mean
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model.engine import Decoding, EngineDeadError, Label, SteeredPrompt, UnsupportedError
from server.steering.prompt import Options, RenderedPrompt
from server.steering.rewards.confidence import Confidence
from server.steering.rewards.consistency import Consistency
from server.steering.rewards.scorer import Scorer
from server.steering.search import budget as budgets
from server.steering.search.evolution import NOISE, Evolution, rank_weights
from server.steering.search.gradient import Adam, Gradient, advantages
from server.steering.search.result import Search, SearchResult
from server.steering.search.session import PATIENCE, Session
from server.steering.search.trust_region import RADIUS, project
from server.steering.search.vote import Vote
from tests.scripted_engine import GOOD, ScriptedEngine
from tests.server.steering.fakes import GoodAnswers, options, rendered
from tests.server.steering.fakes import answer as said

SEARCHES = [Evolution(), Gradient()]
both = pytest.mark.parametrize("search", SEARCHES)


def limits(**changes: Any) -> Options:
    values: dict = {
        "steps": 10,
        "population": 8,
        "answer_tokens": 32,
        "vote_tokens": 0,
        "seed": 0,
        "deadline_s": 60.0,
    } | changes
    return options("high", **({"votes": values["population"]} | values))


def scorer() -> Scorer:
    """Mostly whether the answer is good, a little how likely: greedy answers alone would give no slope."""
    return Scorer([(GoodAnswers(), 0.5), (Confidence(), 0.5)])


async def run(
    search: Search,
    engine: ScriptedEngine,
    scorer: Scorer,
    prompt: RenderedPrompt,
    limits: Options,
    *,
    start: torch.Tensor | None = None,
    served: bool = False,
) -> SearchResult:
    begins = engine.neutral_latent() if start is None else start
    position = engine.position(prompt.token_ids)
    session = Session(engine, scorer, prompt, begins, position, limits, served=begins if served else None)
    return await session.run(search)


def hopeful(**changes: object) -> ScriptedEngine:
    """An engine whose unsteered samples are good now and then, so that sampling tells something."""
    return ScriptedEngine(**({"steepness": 1.0, "hidden_size": 16} | changes))


async def refine(
    search: Search, engine: ScriptedEngine, question: str = "apples?", **changes: Any
) -> SearchResult:
    return await run(search, engine, scorer(), rendered(engine, question), limits(**changes))


@both
async def test_refining_turns_poor_answers_good(search: Search) -> None:
    for topic in ("apples", "trains", "poems"):
        result = await refine(search, hopeful(), f"{topic} please", seed=1)
        assert result.best.reward > result.plain.reward + 0.4
        assert result.best is not None
        assert result.best.answer.text.startswith(GOOD)
        assert result.best.latent is not None


async def test_evolution_beats_the_best_of_as_many_random_latents() -> None:
    refined, noise = [], []
    for seed in range(6):
        engine = ScriptedEngine(reach=0.5)  # further than luck takes a latent in 256 dimensions
        prompt = rendered(engine)
        start = engine.neutral_latent()
        search, likely = Evolution(noise=0.2), Scorer([(Confidence(), 1.0)])
        result = await run(search, engine, likely, prompt, limits(seed=seed))
        tried = sum(len(step.rewards) for step in result.steps[1:])
        refined.append(result.best.reward)

        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(tried, *start.shape, generator=generator)
        best = 0.0
        for radius in (0.1, 0.3, 1.0):  # the control may choose its distance
            scale = radius * start.norm() / drawn.flatten(1).norm(dim=1)[:, None, None]
            scores = [torch.sigmoid(engine.score(prompt.token_ids, start + one)) for one in drawn * scale]
            best = max(best, float(max(scores)))
        noise.append(best)
    assert mean(refined) > mean(noise) + 0.05


async def test_gradient_beats_a_random_walk_of_the_same_length() -> None:
    gains, walks = [], []
    for seed in range(6):
        engine = hopeful()
        result = await refine(Gradient(), engine, seed=seed)
        gains.append(result.best.reward)
        prompt = rendered(engine, "apples?")
        latent = start = engine.neutral_latent()
        generator = torch.Generator().manual_seed(seed)
        best = 0.0
        for _ in result.steps[1:]:
            latent = latent + 0.1 * start.square().mean().sqrt() * torch.randn(
                start.shape, generator=generator
            )
            likely = float(torch.sigmoid(engine.score(prompt.token_ids, latent)))
            best = max(best, 0.5 * (likely > 0.5) + 0.5 * likely)
        walks.append(best)
    assert mean(gains) > mean(walks) + 0.1


@both
async def test_same_seed_gives_the_same_result(search: Search) -> None:
    first, second = [await refine(search, hopeful(), seed=5) for _ in range(2)]
    other = await refine(search, hopeful(), seed=6)
    assert first.steps == second.steps
    assert first.best.latent is not None
    assert torch.equal(first.best.latent, second.best.latent)
    assert other.steps != first.steps


@both
async def test_result_is_the_best_seen_and_never_below_doing_nothing(search: Search) -> None:
    for seed in range(4):
        result = await refine(search, hopeful(), seed=seed, steps=3, population=2)
        assert result.best.reward >= result.plain.reward
        assert result.best.reward == result.steps[-1].best
        bests = [step.best for step in result.steps]
        assert bests == sorted(bests)
        assert (result.best.latent is None) == (result.best.reward == result.plain.reward)


@both
async def test_budget_is_never_exceeded(search: Search) -> None:
    for budget in [1, 7, 16, 33, 60, 100, 150, 200, 333, 1000]:
        engine = hopeful()
        prompt = rendered(engine)
        result = await run(search, engine, scorer(), prompt, limits(budget_tokens=budget, answer_tokens=20))
        assert result.usage.generated_tokens <= budget
        if budget >= 4:  # unsteered, start, and two that vote
            assert result.best is not None
        if budget <= 333:
            assert result.stopped == "budget"


@both
async def test_small_budgets_shorten_the_first_answers_and_thin_the_last_batch(search: Search) -> None:
    tight = await refine(search, hopeful(), budget_tokens=10)
    assert tight.best is not None
    assert len(tight.best.answer.token_ids) <= 5
    thin = await refine(search, hopeful(reach=1.0), budget_tokens=32 * 16, steps=50)
    sizes = [len(step.rewards) for step in thin.steps[1:]]
    assert thin.stopped == "budget"
    assert sizes[-1] < sizes[0]


@both
async def test_deadline_ends_with_the_best_so_far(search: Search) -> None:
    engine = hopeful()
    generate = engine.generate
    calls = 0

    async def hanging(prompts: object, decoding: object, **named: Any) -> object:
        nonlocal calls
        calls += 1
        if calls > 2:
            await asyncio.Event().wait()
        return await generate(prompts, decoding, **named)

    engine.generate = hanging
    result = await refine(search, engine, deadline_s=0.5)
    assert result.stopped == "deadline"
    assert result.best is not None
    assert result.plain is not None


@pytest.mark.parametrize("setting", ["consistency=1", "consistency=0.5,format=0.5"])
async def test_scores_that_were_there_at_the_deadline_are_kept(
    monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    """The clock passes the deadline while the answers are being scored."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(budgets, "time", clock)

    class Late(Consistency):
        async def score(self, *args: Any) -> list[float | None]:
            clock.now = 61.0
            return await super().score(*args)

    engine = hopeful(answer=lambda prompt, latent, decoding: "5" if (decoding.seed or 0) % 4 else "6")
    prompt = rendered(engine, rules={"regex": ".*"})
    signals = [
        (Late() if reward.name == "consistency" else reward, weight)
        for reward, weight in Scorer.of(setting).rewards
    ]
    result = await run(Evolution(), engine, Scorer(signals), prompt, limits(deadline_s=60.0))
    assert result.stopped == "deadline"
    assert result.plain is not None
    assert result.elected is not None


@pytest.mark.parametrize("setting", ["consistency=1", "consistency=0.5,format=0.5"])
async def test_form_of_each_answer_is_checked_once(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    engine = hopeful(answer=lambda prompt, latent, decoding: "5")
    prompt, checked = rendered(engine, rules={"regex": ".*"}), []

    def fullmatch(pattern: str, text: str, **_: object) -> bool:
        checked.append(text)
        return True

    monkeypatch.setattr("regex.fullmatch", fullmatch)
    result = await run(Vote(), engine, Scorer.of(setting), prompt, limits(steps=0))
    assert result.elected is not None
    assert len(checked) == sum(len(call.prompts) for call in engine.calls)


@both
async def test_deadline_before_the_first_answer_measures_nothing(search: Search) -> None:
    result = await refine(search, hopeful(delay_s=60.0), deadline_s=0.05)
    assert (result.stopped, result.best, result.plain) == ("deadline", None, None)


@both
async def test_perfect_answer_needs_no_step(search: Search) -> None:
    engine = ScriptedEngine(answer=lambda prompt, latent, decoding: f"{GOOD}1")
    prompt = rendered(engine)
    result = await run(search, engine, Scorer([(GoodAnswers(), 1.0)]), prompt, limits())
    assert (result.stopped, result.best.latent, len(result.steps)) == ("perfect", None, 1)


@both
async def test_search_ends_when_nothing_gets_better(search: Search) -> None:
    engine = ScriptedEngine(answer=lambda prompt, latent, decoding: "always the same")
    prompt = rendered(engine)
    result = await run(search, engine, Scorer([(GoodAnswers(), 1.0)]), prompt, limits())
    assert (result.stopped, result.best.latent, len(result.steps)) == ("plateau", None, 1 + PATIENCE)


@both
async def test_latents_stay_in_the_trust_region(search: Search) -> None:
    engine = hopeful(reach=20.0)  # the best latent is far away
    start = engine.neutral_latent()
    await refine(search, engine, steps=30)
    ways = [
        float((latent - start).norm() / start.norm())
        for call in engine.calls
        for latent in call.latents
        if latent is not None
    ]
    assert max(ways) <= RADIUS + 1e-4


@both
async def test_engine_that_dies_on_the_way_leaves_the_best_so_far(search: Search) -> None:
    engine = hopeful()
    generate = engine.generate
    calls = spent = 0

    async def dying(prompts, decoding, **named: Any):
        nonlocal calls, spent
        calls += 1
        if calls > 2:
            spent += sum(one.max_tokens for one in decoding)  # it may have generated all of it
            raise EngineDeadError("gone")
        answers = await generate(prompts, decoding, **named)
        spent += sum(len(answer.token_ids) for answer in answers)
        return answers

    engine.generate = dying
    result = await refine(search, engine)
    assert result.stopped == "engine-error"
    assert result.best is not None
    assert result.usage.generated_tokens == spent

    with pytest.raises(EngineDeadError):
        await refine(search, engine)


async def test_gradient_without_a_gradient_worker_says_so() -> None:
    with pytest.raises(UnsupportedError):
        await refine(Gradient(), hopeful(differentiable=False))


async def test_candidates_are_judged_greedily_and_rollouts_sampled_with_own_seeds() -> None:
    engine = hopeful()
    decodings: list = []
    generate = engine.generate

    async def watched(prompts: object, decoding: list, **named: Any) -> object:
        decodings.append(list(decoding))
        return await generate(prompts, decoding, **named)

    engine.generate = watched
    prompt = rendered(engine, temperature=0.9)
    await run(Gradient(), engine, scorer(), prompt, limits(steps=2, population=4))
    opening = decodings[0]
    assert [how.temperature for how in opening] == [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    seeds = [how.seed for batch in decodings for how in batch if how.temperature]
    assert len(set(seeds)) == len(seeds)


async def test_rollouts_of_a_gradient_step_share_the_batch_that_judges_the_one_before() -> None:
    engine = hopeful()
    await refine(Gradient(), engine, steps=3, population=4)
    opening, first, *later = engine.calls
    assert (opening.method, first.method) == ("generate", "generate")
    assert len(first.latents) == 4
    climbs, judged = later[::2], later[1::2]
    assert [call.method for call in climbs] == ["latent_gradient"] * 3
    assert [call.method for call in judged] == ["generate"] * 3
    assert [len(call.latents) for call in judged] == [1 + 4, 1 + 4, 1]
    for climb, batch in zip(climbs[1:], judged[:-1], strict=True):
        # What is climbed from is what was judged and sampled.
        assert all(torch.equal(latent, climb.latents[0]) for latent in batch.latents)


async def test_candidates_are_mirrored_pairs_at_one_distance() -> None:
    engine = hopeful()
    start = engine.neutral_latent()
    await refine(Evolution(), engine, steps=1, population=6)
    candidates = engine.calls[-1].latents
    assert len(candidates) == 6
    for one, other in zip(candidates[:3], candidates[3:], strict=True):
        assert torch.allclose(one + other, 2 * start, atol=1e-5)
    distances = [float((latent - start).norm() / start.norm()) for latent in candidates]
    assert distances == pytest.approx([NOISE] * 6, rel=1e-4)


async def test_start_that_is_the_best_is_told_from_one_that_was_found() -> None:
    engine = ScriptedEngine()
    prompt = rendered(engine)
    best = engine.best_latent(prompt.token_ids)
    result = await run(Vote(), engine, scorer(), prompt, limits(), start=best)
    assert result.best.latent is best
    assert not result.best.refined
    assert result.best.reward > result.plain.reward


def test_rank_weights_sum_to_zero_and_share_ties() -> None:
    assert rank_weights([0.2, 0.9, 0.1, 0.5]).tolist() == pytest.approx([-1 / 6, 0.5, -0.5, 1 / 6])
    assert rank_weights([0.3, 0.3, 0.3, 0.3]).tolist() == [0.0] * 4
    tied = rank_weights([1.0, 1.0, 0.0, 0.0])
    assert tied[0] == tied[1] == -tied[2]


def test_advantages_leave_one_out_and_vanish_without_spread() -> None:
    values = advantages([1.0, 0.0, 0.0, 0.0])
    assert sum(values) == pytest.approx(0.0)
    assert values[0] == pytest.approx(1.0 / 0.4330127)
    assert advantages([0.4, 0.4]) == [0.0, 0.0]
    assert advantages([0.4]) == [0.0]


def test_adam_steps_as_torch_does() -> None:
    generator = torch.Generator().manual_seed(0)
    latent = torch.zeros(3, 5)
    reference = torch.zeros(3, 5)
    theirs, ours = torch.optim.Adam([reference], lr=0.1, maximize=True), Adam(0.1)
    for _ in range(6):
        gradient = torch.randn(3, 5, generator=generator)
        reference.grad = gradient
        theirs.step()
        latent = latent + ours.step(gradient)
    assert torch.allclose(latent, reference, atol=1e-5)


def test_projection_leaves_near_latents_alone() -> None:
    start = torch.ones(2, 3)
    near, far = start * 1.5, start * 9.0
    assert torch.equal(project(near, start, 1.0), near)
    assert torch.allclose(project(far, start, 1.0), start * 2.0)


async def test_many_refinements_at_once_do_not_disturb_each_other() -> None:
    engine = hopeful()
    alone = [await refine(Evolution(), engine, f"topic{n} x", seed=n) for n in range(4)]
    together = await asyncio.gather(*(refine(Evolution(), engine, f"topic{n} x", seed=n) for n in range(4)))
    assert [one.steps for one in alone] == [one.steps for one in together]


@both
async def test_smallest_budget_leaves_two_votes(search: Search) -> None:
    for budget in (4, 7, 40, 100):
        engine = hopeful()
        prompt = rendered(engine)
        tight = limits(budget_tokens=budget, answer_tokens=64, vote_tokens=200)
        await run(search, engine, scorer(), prompt, tight)
        opening = next(call for call in engine.calls if call.method == "generate")
        assert len(opening.prompts) >= 4


@both
async def test_batch_that_the_deadline_cut_short_is_counted_in_full(search: Search) -> None:
    engine = hopeful()

    async def never(*_: object, **__: object) -> list:
        await asyncio.sleep(60)
        return []

    engine.generate = never
    result = await refine(search, engine, deadline_s=0.05, population=8, answer_tokens=32)
    assert (result.stopped, result.usage.generated_tokens) == ("deadline", 10 * 32)


async def test_gradient_of_choices_is_that_under_their_grammar() -> None:
    engine = hopeful()
    told = []
    latent_gradient = engine.latent_gradient

    async def noting(prompts, labels, weights):
        told.append(list(labels))
        return await latent_gradient(prompts, labels, weights)

    engine.latent_gradient = noting
    prompt = rendered(engine)
    choices = tuple(sorted({(await engine.generate([SteeredPrompt(prompt.token_ids)], Decoding(9)))[0].text}))
    prompt = replace(prompt, decoding=Decoding(9, choices=choices))
    start, position = engine.neutral_latent(), engine.position(prompt.token_ids)
    session = Session(engine, scorer(), prompt, start, position, limits(), served=None)
    answers = await engine.generate([SteeredPrompt(prompt.token_ids)] * 2, prompt.decoding)
    other = replace(answers[0], text="none of them")
    await session.gradient(start, [(answers[0], 1.0), (other, -1.0)])
    assert told == [[Label.of(engine.answer_tokens(choices[0]), choices)]]


@pytest.mark.parametrize(("population", "vote_tokens", "budget"), [(2, 0, None), (5, 24, None), (8, 24, 120)])
async def test_sides_that_answer_alike_have_no_lift_on_average(
    population: int, vote_tokens: int, budget: int | None
) -> None:
    """Answers of both sides are drawn alike; some are longer than an answer may be, but not than a vote."""
    lifts = []
    for number in range(300):

        def answer(prompt: str, latent: object, decoding: object, number: int = number) -> str:
            drawn = random.Random(f"{number} {latent is None} {decoding.seed}")  # type: ignore[attr-defined]
            return drawn.choice(["1", "2", "3", "After a while: 1"])

        engine = ScriptedEngine(answer=answer)
        prompt = rendered(engine, max_tokens=8)
        voting = limits(
            steps=0,
            population=population,
            answer_tokens=8,
            seed=number,
            budget_tokens=budget,
            vote_tokens=vote_tokens,
        )
        agreement = Scorer.of("consistency=1")
        result = await run(Vote(), engine, agreement, prompt, voting, served=True)
        assert result.lift is not None
        lifts.append(result.lift)
    assert sum(map(bool, lifts)) > 60
    mean = sum(lifts) / len(lifts)
    spread = (sum((lift - mean) ** 2 for lift in lifts) / len(lifts)) ** 0.5
    assert abs(mean) < 3 * spread / len(lifts) ** 0.5


def slow_after(answers: dict[int, str]) -> Any:
    """Return a `generate` that tells these answers, by their number, and never ends."""

    async def generate(prompts: Any, decoding: Any, *, finished: Any = None) -> None:
        for index, text in answers.items():
            finished(index, said(text))
        await asyncio.Event().wait()

    return generate


async def test_a_start_that_is_not_served_has_no_vote_at_the_deadline_either() -> None:
    engine = hopeful()
    engine.generate = slow_after({0: "7", 1: "8", 2: "8"})  # plain, the start, a voter
    limits_ = limits(deadline_s=0.05)
    result = await run(Evolution(), engine, Scorer.of("consistency=1"), rendered(engine), limits_)
    assert (result.stopped, result.elected) == ("deadline", None)
    served = await run(
        Evolution(), engine, Scorer.of("consistency=1"), rendered(engine), limits_, served=True
    )
    assert served.elected is not None
    assert served.elected.answer.text == "8"


async def test_where_votes_do_not_count_a_deadline_elects_nothing() -> None:
    engine = hopeful()
    engine.generate = slow_after({0: "7", 2: "7"})
    result = await run(Vote(), engine, Scorer.of("confidence=1"), rendered(engine), limits(deadline_s=0.05))
    assert (result.stopped, result.elected) == ("deadline", None)


async def test_answers_vote_where_the_deadline_comes_while_they_are_scored() -> None:
    class Slow:
        name = "verifier"

        async def score(self, *_: object) -> list[float | None]:
            await asyncio.Event().wait()
            return []

    engine = hopeful(answer=lambda prompt, latent, decoding: "5" if (decoding.seed or 0) % 4 else "6")
    signals = [(Slow(), 0.5), *Scorer.of("consistency=0.3,format=0.2").rewards]
    result = await run(Vote(), engine, Scorer(signals), rendered(engine), limits(steps=0, deadline_s=0.2))
    assert (result.stopped, result.plain) == ("deadline", None)
    assert result.elected is not None
    assert result.elected.answer.text == "5"
    assert result.elected.scored.signals.keys() == {"consistency"}  # format has nothing to say of it
