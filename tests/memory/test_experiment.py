"""The experiment on steering: who counts, what is harm, and how often that is said for nothing."""

import math
from collections.abc import Callable

import numpy as np
import pytest

import memory.experiment
from memory.experiment import FIRST, METRICS, Comparison, Experiments, Metric, Switch, Value, half_width, harm
from memory.free_space import NoRoomError
from memory.state import State
from tests.memory.full_disk import Disk

Draw = Callable[[np.random.Generator], float]


@pytest.fixture
def experiments(state: State) -> Experiments:
    return Experiments(state, "space")


def value(unit: str, number: float = 1.0, arm: str = "steered", metric: str = "rating") -> Value:
    return Value(metric, arm, unit, number)  # type: ignore[arg-type]


def test_a_unit_counts_once_per_metric_with_its_first_value(experiments: Experiments, state_url: str) -> None:
    experiments.note("default", [value("a", 0.5), value("b", 0.25, "holdout"), value("a", 1.0)])
    experiments.note("default", [value("a", 0.75, "holdout"), value("a", 12, metric="tokens")])
    experiments.note("other", [value("a", 0.125)])
    with State(state_url) as other_process:
        found = Experiments(other_process, "space").values(tenant="default")
        assert [one for _, _, one in found] == [
            value("a", 0.5),
            value("b", 0.25, "holdout"),
            value("a", 12, metric="tokens"),
        ]
        assert Experiments(other_process, "elsewhere").values() == []
    assert experiments.values(found[0][0], "default") == found[1:]
    others = experiments.values(found[-1][0])
    assert [(tenant, one) for _, tenant, one in others] == [("other", value("a", 0.125))]


def test_only_so_many_values_are_kept(experiments: Experiments, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.experiment, "MOST", 3)
    for number in range(5):
        experiments.note("default", [value(str(number))])
    assert [one.unit for _, _, one in experiments.values()] == ["2", "3", "4"]
    for number in range(9):
        experiments.note("busy", [value(str(number))])
    experiments.note("default", [value("5")])
    assert [one.unit for _, _, one in experiments.values(tenant="default")] == ["3", "4", "5"], (
        "whatever others have noted meanwhile"
    )


def test_what_is_turned_off_stays_so_until_it_is_turned_on_and_then_begins_anew(
    experiments: Experiments, state_url: str
) -> None:
    assert experiments.switches() == {}
    experiments.note("default", [value("a")])
    off = experiments.turn("default", Switch(True, "evidence", "it harms"))
    assert (off.off, off.cause, off.message) == (True, "evidence", "it harms")
    assert experiments.turn("default", Switch(True, "operator")) == off, "it was off already"
    with State(state_url) as other_process:
        elsewhere = Experiments(other_process, "space")
        assert elsewhere.switches() == {"default": off}
        assert len(elsewhere.values()) == 1
        on = elsewhere.turn("default", Switch(False))
    assert (experiments.switches(), on.off) == ({"default": on}, False)
    assert experiments.values() == []


def test_below_the_floor_nothing_is_noted(tmp_path: Disk, state: State) -> None:
    class Full:
        def demand(self, *_: object, **__: object) -> None:
            raise NoRoomError("full")

    state.room = Full()  # type: ignore[assignment]
    with pytest.raises(NoRoomError):
        Experiments(state, "space").note("default", [value("a")])


def compared(metric: Metric, values: list[tuple[str, float]]) -> Comparison:
    comparison = Comparison(metric)
    for number, (arm, each) in enumerate(values):
        comparison.add(value(str(number), each, arm, metric))
    return comparison


def test_each_held_out_value_is_compared_with_the_steered_ones_since_the_last() -> None:
    arms = [("holdout", 1.0), ("steered", 1.0), ("steered", 0.0), ("holdout", 0.25), ("holdout", 0.0)]
    comparison = compared("rating", [*arms, ("steered", 0.75), ("holdout", 0.5)])
    assert comparison.differences == [0.25, 0.25]
    assert comparison.difference == pytest.approx(1.75 / 3 - 1.75 / 4)
    assert compared("tokens", arms).differences == []
    assert compared("tokens", arms).evidence is None
    assert compared("rating", arms[:1]).difference is None


def test_an_interval_is_given_once_both_arms_have_enough_and_gets_narrower() -> None:
    values = [("steered", 30.0), ("holdout", 20.0), ("steered", 32.0), ("holdout", 22.0)]
    assert compared("tokens", values * (FIRST // 2 - 1)).interval is None
    narrower = [compared("tokens", values * rounds).interval for rounds in (FIRST // 2, FIRST, 20 * FIRST)]
    widths = [found[1] - found[0] for found in narrower if found is not None]
    assert len(widths) == 3
    assert widths == sorted(widths, reverse=True)
    assert all(found[0] < 10 < found[1] for found in narrower if found is not None)
    same = compared("rating", [("steered", 1.0), ("holdout", 1.0)] * FIRST).interval
    assert same is not None
    assert same[0] < 0 < same[1], "values that are all equal are no proof"


def test_harm_is_said_of_outcomes_alone_and_names_what_proves_it() -> None:
    worse, better = [("steered", 0.0), ("holdout", 1.0)], [("steered", 1.0), ("holdout", 0.0)]
    assert harm([compared("rating", worse * 30)]) is not None
    assert "agreement is 1.00 lower" in str(
        harm([compared("rating", better * 30), compared("agreement", worse * 30)])
    )
    assert harm([compared("rating", better * 30)]) is None
    assert harm([compared("tokens", better * 30), compared("latency_s", better * 30)]) is None
    assert harm([Comparison(metric) for metric in METRICS]) is None


def streams(metric: Metric, share: float, steered: Draw, held: Draw, seed: int, n: int = 1500) -> Comparison:
    rng = np.random.default_rng(seed)
    comparison = Comparison(metric)
    for number in range(n):
        arm = "holdout" if rng.random() < share else "steered"
        each = (held if arm == "holdout" else steered)(rng)
        comparison.add(value(str(number), each, arm, metric))
    return comparison


def yes(share: float) -> Draw:
    return lambda rng: float(rng.random() < share)


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_steering_that_does_no_harm_is_seldom_turned_off_and_such_that_does_nearly_always(
    share: float,
) -> None:
    """Looked at after every value, for what is proven once stays so."""
    said = [harm([streams("rating", share, yes(0.6), yes(0.6), seed)]) for seed in range(60)]
    assert sum(one is not None for one in said) <= 3  # of one outcome at most 1 in 40
    said = [harm([streams("rating", share, yes(0.2), yes(0.8), seed)]) for seed in range(20)]
    assert sum(one is not None for one in said) >= 19


def test_intervals_hold_however_often_they_are_looked_at() -> None:
    """Of latencies with a long tail, looked at after every fifth value."""
    missed = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        comparison, misses = Comparison("latency_s"), False
        for number in range(1500):
            arm = "holdout" if rng.random() < 0.2 else "steered"
            each = float(rng.lognormal(0, 1)) * (0.5 if arm == "holdout" else 1.0)
            comparison.add(value(str(number), each, arm, "latency_s"))
            bounds = comparison.interval if number % 5 == 0 else None
            misses |= bounds is not None and not bounds[0] <= 0.5 * math.exp(0.5) <= bounds[1]
        missed += misses
    assert missed <= 4  # 5 % in the limit


def test_half_of_a_width_is_that_of_the_paper() -> None:
    """Theorem 2.2 with ρ² = 0.0196 and α = 0.05, worked out by hand after 100 values."""
    rho2 = (-2 * math.log(0.05) + math.log(1 - 2 * math.log(0.05))) / memory.experiment.TIGHTEST
    expected = math.sqrt(2 * (100 * rho2 + 1) / (100**2 * rho2) * math.log(math.sqrt(100 * rho2 + 1) / 0.05))
    assert half_width(100, 0.05) == pytest.approx(expected)
    assert half_width(100) > half_width(100, 0.05) > 1.96 / 10, (
        "wider than an interval that is looked at once"
    )
