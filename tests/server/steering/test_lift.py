"""The lift of a neighbourhood."""

import pytest

from memory.store import Neighbour
from server.steering.lift import MIN_OVERALL, LiftTally, lift_nearby


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
