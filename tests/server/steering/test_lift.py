"""The lift of a neighbourhood, and of one request."""

import random

import pytest

from memory.store import Neighbour
from model.scripted_engine import ScriptedEngine
from server.steering.lift import MIN_OVERALL, LiftTally, lift_nearby
from server.steering.refiners.evolution import EvolutionRefiner
from server.steering.refiners.refiner import Limits
from server.steering.rewards.scorer import Scorer
from tests.server.steering.fakes import rendered


@pytest.mark.parametrize(
    ("lifts", "version", "found"),
    [
        ([(0.1, "v1"), (-0.3, "v1"), (-0.1, "v1")], "v1", pytest.approx(-0.1)),
        ([(0.1, "v1"), (-0.3, "v2"), (-0.1, "v2")], "v1", None),
        ([(0.1, None), (0.2, None), (0.3, None), (None, None)], None, pytest.approx(0.2)),
        ([(None, "v1")] * 4, "v1", None),
        ([], None, None),
    ],
)
def test_mean_of_at_least_two_lifts_under_the_same_prior(lifts: list, version: str | None, found) -> None:
    near = [
        Neighbour("some", 0.9, latent_earned=False, start_lift=lift, prior_version=prior_version)
        for lift, prior_version in lifts
    ]
    assert lift_nearby(near, version) == found


def test_tally_speaks_after_enough_lifts_of_one_way_to_steer_under_one_prior() -> None:
    tally = LiftTally()
    for number in range(MIN_OVERALL):
        assert tally.mean("prior", "v1") is None
        tally.note("prior", "v1", 0.5 if number else -0.5)
    assert tally.mean("prior", "v1") == pytest.approx((0.5 * (MIN_OVERALL - 1) - 0.5) / MIN_OVERALL)
    assert tally.mean("prior", "v2") is None
    assert tally.mean("recall+prior", "v1") is None


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
        limits = Limits(
            steps=0,
            population=population,
            max_tokens=8,
            seed=number,
            deadline_s=60,
            budget_tokens=budget,
            vote_tokens=vote_tokens,
            start_is_served=True,
        )
        refiner = EvolutionRefiner(engine, Scorer.of("consistency=1", engine))
        start, position = engine.neutral_latent(), engine.position(prompt.token_ids)
        result = await refiner.refine(prompt, start, position, limits)
        assert result.lift is not None
        lifts.append(result.lift)
    assert sum(map(bool, lifts)) > 60
    mean = sum(lifts) / len(lifts)
    spread = (sum((lift - mean) ** 2 for lift in lifts) / len(lifts)) ** 0.5
    assert abs(mean) < 3 * spread / len(lifts) ** 0.5
