"""What decides whether a row of a prior serves."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.random import Generator

from memory.evidence import BETS, PROOF, SHARED, weigh

Draw = Callable[[Generator, int], np.ndarray]


def direct(differences: list[float]) -> float:
    """The formula of the page, as it stands there."""
    return sum(math.prod(1 + bet * x for x in differences) for bet in BETS) / len(BETS)


def standings(x: np.ndarray) -> list[str]:
    """The standing after each outcome."""
    return [weigh(x[:n]).standing for n in range(1, len(x) + 1)]


def test_nothing_observed_is_on_trial_with_e_values_of_one() -> None:
    found = weigh([])
    assert (found.n, found.mean, found.e_value, found.e_against) == (0, 0.0, 1.0, 1.0)
    assert found.standing == "on trial"


@pytest.mark.parametrize("seed", range(5))
def test_e_values_are_the_mean_of_the_products(seed: int) -> None:
    x = np.random.default_rng(seed).uniform(-1, 1, 12).tolist()
    found = weigh(x)
    assert found.standing == "on trial"
    assert found.e_value == pytest.approx(direct(x))
    assert found.e_against == pytest.approx(direct([-one for one in x]))
    assert (found.n, found.mean) == (12, pytest.approx(np.mean(x)))


def test_first_of_both_sides_to_reach_proof_decides() -> None:
    wins = [1.0] * 7
    assert direct(wins[:-1]) < PROOF <= direct(wins)
    assert weigh(wins[:-1]).standing == "on trial"
    assert weigh(wins).standing == "serves"
    assert weigh([-one for one in wins]).standing == "retired"


def test_evidence_against_a_row_begins_anew_when_it_serves() -> None:
    wins = [0.5] * 200  # would outweigh any harm to come if both were one sum
    began = standings(np.array(wins)).index("serves") + 1
    assert weigh(wins[:began]).e_against == 1.0
    assert weigh(wins[:began] + [-0.5] * 4).e_against == pytest.approx(direct([0.5] * 4))
    assert weigh(wins + [-0.5] * 400).standing == "retired"


def test_what_is_retired_never_comes_back() -> None:
    lost = [-1.0] * 7
    assert weigh(lost + [1.0] * 5_000) == weigh(lost)
    served = [1.0] * 7 + [-1.0] * 7
    assert weigh(served).standing == "retired"
    assert weigh(served + [1.0] * 5_000) == weigh(served)


@pytest.mark.parametrize("seed", range(20))
def test_standing_only_goes_from_trial_to_serving_to_retired(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.choice([-1.0, 0.0, 0.5, 1.0], 60), rng.choice([-1.0, -0.5, 0.0, 1.0], 60)])
    order = [("on trial", "serves", "retired").index(one) for one in standings(x)]
    assert order == sorted(order)


@pytest.mark.parametrize("seed", range(10))
def test_good_and_harm_are_weighed_alike(seed: int) -> None:
    x = np.random.default_rng(seed).choice([-1.0, -0.25, 0.0, 0.5, 1.0], 40)
    undecided = next((n for n, one in enumerate(standings(x)) if one != "on trial"), len(x))
    there, back = weigh(x[:undecided]), weigh(-x[:undecided])
    assert (there.e_value, there.e_against) == (back.e_against, back.e_value)
    decided = {weigh(x[: undecided + 1]).standing, weigh(-x[: undecided + 1]).standing}
    assert decided in ({"on trial"}, {"serves", "retired"})


@pytest.mark.parametrize("share", [1.0, -1.0, 0.3])
def test_thousands_of_outcomes_stay_finite(share: float) -> None:
    found = weigh([share] * 20_000)
    assert math.isfinite(found.e_value)
    assert math.isfinite(found.e_against)
    assert found.standing == ("serves" if share > 0 else "retired")


def test_smaller_stake_needs_as_much_more_evidence() -> None:
    x = [0.5, -0.25, 0.5]
    found = weigh(x, stake=SHARED)
    assert found.e_value == pytest.approx(SHARED * direct(x))
    assert found.e_against == pytest.approx(SHARED * direct([-one for one in x]))
    assert weigh([1.0] * 7).standing == "serves"
    assert weigh([1.0] * 7, stake=SHARED).standing == "on trial"
    served = weigh([1.0] * 8, stake=SHARED)
    assert (served.standing, served.e_against) == ("serves", 1.0)  # begins anew, and whole


@pytest.mark.parametrize("stake", [0.0, -1.0, 1.5, math.nan])
def test_stake_that_is_none_is_refused(stake: float) -> None:
    with pytest.raises(ValueError, match="stake"):
        weigh([], stake=stake)


@pytest.mark.parametrize("wrong", [1.001, -2.0, math.nan, math.inf])
def test_difference_that_is_none_is_refused_by_its_index(wrong: float) -> None:
    with pytest.raises(ValueError, match=r"differences\[2\]"):
        weigh([0.0, 1.0, wrong, wrong])


def test_28_graded_outcomes_of_a_real_effect_prove_it() -> None:
    # 60 instead of 20 % of four answers agree, prompts as unequal as a uniform share makes them.
    rng = np.random.default_rng(0)
    with_row = rng.binomial(4, rng.beta(1.2, 0.8, (300, 28))) / 4
    without = rng.binomial(4, rng.beta(0.4, 1.6, (300, 28))) / 4
    served = [weigh(x).standing == "serves" for x in with_row - without]
    assert np.mean(served) > 0.9


NO_GOOD: dict[str, Draw] = {
    "wins and losses alike": lambda rng, n: rng.choice([-1.0, 0.0, 1.0], n),
    "rare wins": lambda rng, n: np.where(rng.random(n) < 0.1, 0.9, -0.1),
    "rare losses": lambda rng, n: np.where(rng.random(n) < 0.1, -0.9, 0.1),
    "large ones in a row": lambda rng, n: (
        rng.choice([-1.0, 1.0], n) * np.repeat(rng.random(n // 20 + 1), 20)[:n]
    ),
    "alternating": lambda rng, n: np.tile([1.0, -1.0], n)[:n],
    "none": lambda rng, n: np.zeros(n),
}


@pytest.mark.parametrize("name", NO_GOOD)
def test_row_that_does_no_good_serves_at_most_once_in_twenty(name: str) -> None:
    # It may be looked at after every outcome: who served once is retired later, not on trial again.
    rng = np.random.default_rng(1)
    ever = 0
    for _ in range(200):
        x = NO_GOOD[name](rng, 400)
        ever += any(weigh(x[:n]).standing == "serves" for n in (25, 50, 100, 200, 400))
    assert ever / 200 <= 0.05


@pytest.mark.parametrize("stake", [1.0, SHARED])
def test_outcomes_that_are_lowered_whenever_never_let_a_row_serve_that_would_not_have(stake: float) -> None:
    """By which people may say of any answers, for any reason, that they are wrong (docs/evidence.md)."""
    rng = np.random.default_rng(5)
    served = 0
    for _ in range(400):
        n = int(rng.integers(1, 60))
        x = np.clip(rng.normal(rng.normal(0.2, 0.2), 0.6, n), -1, 1)
        lowered = np.where(rng.random(n) < rng.random(), np.minimum(x, rng.uniform(-1, 1, n)), x)
        found = weigh(lowered, stake=stake)
        ever = any(weigh(x[:at], stake=stake).standing == "serves" for at in range(1, n + 1))
        served += found.standing == "serves"
        assert ever or found.standing != "serves"
    assert 20 < served < 380
