"""What happened when, as the state adds it up, on SQLite and on PostgreSQL."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from memory.state import Feedback, NewTrace, State
from memory.timeline import Window, timeline

NOON = datetime(2026, 3, 1, 12, 30, 30, tzinfo=UTC)


def trace(number: int, at: datetime, **content: Any) -> NewTrace:
    """Return a trace as requests leave them."""
    values = {
        "id": f"trace {number}",
        "created_at": at.isoformat(),
        "space": "space",
        "effort": "low",
        "mode": "plain",
        "reward_before": None,
        "reward_after": None,
        "usage": {"generated_tokens": 0},
    }
    return NewTrace(f"trace {number}", values | content)


def searched(number: int, at: datetime, before: float, after: float, tokens: int) -> NewTrace:
    rewards = {"reward_before": before, "reward_after": after, "usage": {"generated_tokens": tokens}}
    return trace(number, at, effort="medium", mode="voted", **rewards)


def test_requests_are_added_up_by_step_effort_and_mode(state_url: str) -> None:
    minute = timedelta(minutes=1)
    with State(state_url) as state:
        traces = [
            trace(0, NOON),
            trace(1, NOON, mode="prior"),
            trace(2, NOON - 30 * minute, mode="recall+prior"),
            searched(3, NOON - 30 * minute, 0.25, 0.5, 100),
            searched(4, NOON - 30 * minute, 0.75, 1.0, 300),
            trace(5, NOON - 30 * minute, reward_before=0.1),
            trace(6, NOON - 60 * minute),
            trace(7, NOON, space="elsewhere"),
        ]
        state.write_traces(traces, {}, keep=100)
        found = timeline(state, "space", "default", "hour", NOON)
    assert len(found.steps) == 60
    assert found.step_s == 60
    assert list(found.steps)[-1] == NOON.replace(second=0)
    now, before = found.steps[NOON.replace(second=0)], found.steps[NOON.replace(second=0) - 30 * minute]
    assert (now.by_mode, now.by_effort) == ({"plain": 1, "prior": 1}, {"low": 2})
    assert before.by_effort == {"low": 2, "medium": 2}
    assert (before.before.value, before.after.value, before.before.n) == (0.5, 0.75, 2)
    assert (before.search_tokens.value, before.search_tokens.n) == (200, 2)
    whole = found.whole
    assert sum(whole.by_mode.values()) == 6, "of another hour and of another space there is nothing"
    assert whole.learned == 2
    assert now.before.value is None


def test_outcomes_and_ratings_are_told_apart(state_url: str) -> None:
    with State(state_url) as state:
        state.write_traces([trace(0, NOON), trace(1, NOON, mode="prior")], {}, keep=100)
        state.add_outcomes("space", "default", "v1/0", [("a", 0.5), ("b", -1.0)], "day")
        state.add_outcomes("space", "other", "v1/0", [("a", 1.0)], "day")
        until = datetime.now(UTC) + timedelta(seconds=1)
        said: list[tuple[str, str, bool | float | str]] = [
            ("trace 0", "rating", False),
            ("trace 1", "rating", True),
            ("trace 1", "rating", 0.5),
            ("trace 1", "comment", "good"),
        ]
        for number, (name, metric, value) in enumerate(said):
            state.add_feedback(Feedback(f"feedback {number}", name, metric, value))
        whole = timeline(state, "space", "default", "week", until).whole
    assert (whole.difference.n, whole.difference.value) == (2, -0.25)
    assert (whole.rated_plain.n, whole.rated_plain.value) == (1, 0.0)
    assert (whole.rated_steered.n, whole.rated_steered.value) == (2, 0.75)


@pytest.mark.parametrize(("window", "steps"), [("hour", 60), ("day", 24), ("week", 168), ("month", 30)])
def test_every_step_of_a_window_is_there(state: State, window: Window, steps: int) -> None:
    found = timeline(state, "space", "default", window, NOON)
    starts = list(found.steps)
    assert len(starts) == steps
    assert {later - earlier for earlier, later in pairwise(starts)} == {timedelta(seconds=found.step_s)}
    assert starts[-1] <= NOON < starts[-1] + timedelta(seconds=found.step_s)
