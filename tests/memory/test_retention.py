"""What goes by itself: the rule, on memories that nobody chose."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from memory.retention import KEPT, departing
from memory.store import Outline

AT = datetime(2026, 3, 1, tzinfo=UTC)


def outlines(seed: int) -> list[Outline]:
    rng = np.random.default_rng(seed)
    made = []
    for number in range(int(rng.integers(0, 60))):
        created = AT - timedelta(days=float(rng.integers(0, 20)))
        seen = created + timedelta(days=float(rng.integers(0, 20))) if rng.random() < 0.5 else created
        made.append(Outline(f"id-{number:02d}", 0.5, False, 1, min(seen, AT), created))
    return made


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("max_days", [None, 0.5, 7, 100])
@pytest.mark.parametrize("max_episodes", [None, 1, 10, 50])
def test_old_ones_go_and_of_too_many_those_that_were_not_seen_for_longest(
    seed: int, max_days: float | None, max_episodes: int | None
) -> None:
    there = outlines(seed)
    going = departing(there, at=AT, max_days=max_days, max_episodes=max_episodes)
    gone = {*going.expired, *going.evicted}
    assert len(gone) == len(going.expired) + len(going.evicted)
    left = [one for one in there if one.id not in gone]
    age = {one.id: AT - one.seen_last for one in there}
    if max_days is None:
        assert going.expired == []
    else:
        limit = timedelta(days=max_days)
        assert set(going.expired) == {name for name in age if age[name] > limit}
    fresh = len(there) - len(going.expired)
    if max_episodes is None or fresh <= max_episodes:
        assert going.evicted == []
    else:
        assert max(1, int(KEPT * max_episodes)) == len(left) <= max_episodes
        assert min(age[name] for name in going.evicted) >= max(age[one.id] for one in left)
    again = departing(left, at=AT, max_days=max_days, max_episodes=max_episodes)
    assert again.expired == again.evicted == []
