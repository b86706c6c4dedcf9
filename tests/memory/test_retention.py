"""What goes by itself: the rule, on memories that nobody chose."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from memory.retention import KEPT, departing
from memory.store import Outline

AT = datetime(2026, 3, 1, tzinfo=UTC)
AGES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=60)
"""Days since each prompt came first, and last; the later of both is the first."""


def outline(number: int, ages: tuple[int, int]) -> Outline:
    created, seen = AT - timedelta(days=max(ages)), AT - timedelta(days=min(ages))
    return Outline(f"id-{number:02d}", 0.5, False, 1, seen, created)


@given(ages=AGES, max_days=st.none() | st.floats(0.1, 50), max_episodes=st.none() | st.integers(1, 70))
def test_old_ones_go_and_of_too_many_those_that_were_not_seen_for_longest(
    ages: list[tuple[int, int]], max_days: float | None, max_episodes: int | None
) -> None:
    there = [outline(number, each) for number, each in enumerate(ages)]
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
