"""What happened when: requests, outcomes and ratings, added up per step of time.

Owns the windows of time, their steps, and the questions to the database, which adds up what there may be much
of. Knows nothing of who looks at it.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Text, and_, case, cast, func, select

from memory.database import Database
from memory.schema import feedback, outcomes, traces

Window = Literal["hour", "day", "week", "month"]

_SHAPES: dict[Window, tuple[timedelta, int, timedelta]] = {
    "hour": (timedelta(hours=1), 16, timedelta(minutes=1)),
    "day": (timedelta(days=1), 13, timedelta(hours=1)),
    "week": (timedelta(days=7), 13, timedelta(hours=1)),
    "month": (timedelta(days=30), 10, timedelta(days=1)),
}
"""How long each window is, how many letters of a time in ISO 8601 name one of its steps, and their length."""

_LEARNED = ("recall", "prior", "recall+prior")
_MIDNIGHT = "0000-00-00T00:00:00"


@dataclass
class Mean:
    """A mean that is added up."""

    n: int = 0
    total: float = 0.0

    def add(self, total: float, n: int = 1) -> None:
        """Take `n` values that add up to `total`."""
        self.n += n
        self.total += total

    @property
    def value(self) -> float | None:
        """The mean; None of nothing."""
        return self.total / self.n if self.n else None


@dataclass
class Step:
    """What happened from one moment to the next."""

    by_effort: dict[str, int] = field(default_factory=dict)
    """Requests by effort."""
    by_mode: dict[str, int] = field(default_factory=dict)
    """Requests by what really ran."""
    before: Mean = field(default_factory=Mean)
    """Rewards of unsteered answers, of requests that were searched for."""
    after: Mean = field(default_factory=Mean)
    """Rewards of the answers that were given in their place."""
    search_tokens: Mean = field(default_factory=Mean)
    """Tokens that searches generated while clients waited."""
    difference: Mean = field(default_factory=Mean)
    """Outcomes with rows of priors, less outcomes without."""
    rated_steered: Mean = field(default_factory=Mean)
    """What people said of answers that were steered, in [0, 1]."""
    rated_plain: Mean = field(default_factory=Mean)
    """What they said of the others."""

    @property
    def learned(self) -> int:
        """Requests that were answered in one pass with what was learned."""
        return sum(self.by_mode.get(mode, 0) for mode in _LEARNED)

    def add(self, other: "Step") -> None:
        """Take what happened in another step, too."""
        for counts, more in ((self.by_effort, other.by_effort), (self.by_mode, other.by_mode)):
            for name, count in more.items():
                counts[name] = counts.get(name, 0) + count
        for name in ("before", "after", "search_tokens", "difference", "rated_steered", "rated_plain"):
            mean: Mean = getattr(other, name)
            getattr(self, name).add(mean.total, mean.n)


@dataclass(frozen=True)
class Timeline:
    """A window of time."""

    step_s: float
    steps: dict[datetime, Step]
    """All steps by their beginning, oldest first; the last one is not over."""

    @property
    def whole(self) -> Step:
        """All of it added up."""
        total = Step()
        for step in self.steps.values():
            total.add(step)
        return total


def timeline(state: Database, space: str, tenant: str, window: Window, until: datetime) -> Timeline:
    """Return what happened in the window that ends at `until`; blocks, for about 0.1 s of 10,000 traces.

    Raises:
        StateUnavailableError: the database does not answer.
    """
    length, letters, step = _SHAPES[window]
    first, last = (_key(moment, letters) for moment in (until - length + step, until))
    start, end = _moment(first), _moment(last)
    steps: dict[datetime, Step] = {}
    while start <= end:
        steps[start] = Step()
        start += step
    start = next(iter(steps))
    with state.read() as connection:
        for row in connection.execute(_requests(space, tenant, start, letters)):
            _count(steps.get(_moment(row.step)), row)
        for row in connection.execute(_differences(space, tenant, start, letters, connection.dialect.name)):
            if (found := steps.get(_moment(row.step))) is not None:
                found.difference.add(row.total, row.outcomes)
        for moment, rating, mode in connection.execute(_ratings(space, tenant, start)):
            if (found := steps.get(_moment(_key(moment, letters)))) is not None:
                (found.rated_plain if mode == "plain" else found.rated_steered).add(float(rating))
    return Timeline(step.total_seconds(), steps)


def _requests(space: str, tenant: str, start: datetime, letters: int) -> Any:
    content = traces.c.content
    before, after = content["reward_before"].as_float(), content["reward_after"].as_float()
    tokens = content[("usage", "generated_tokens")].as_integer()
    both = and_(before.is_not(None), after.is_not(None))
    created_at = content["created_at"].as_string()  # all of one form, in UTC
    return (
        select(
            func.substr(created_at, 1, letters).label("step"),
            content["effort"].as_string().label("effort"),
            content["mode"].as_string().label("mode"),
            func.count().label("requests"),
            func.sum(case((both, 1), else_=0)).label("searched"),
            func.sum(case((both, before), else_=0.0)).label("before"),
            func.sum(case((both, after), else_=0.0)).label("after"),
            func.sum(case((tokens > 0, 1), else_=0)).label("searches"),
            func.sum(case((tokens > 0, tokens), else_=0)).label("tokens"),
        )
        .where(
            traces.c.tenant == tenant, content["space"].as_string() == space, created_at >= start.isoformat()
        )
        .group_by("step", "effort", "mode")
    )


def _differences(space: str, tenant: str, start: datetime, letters: int, dialect: str) -> Any:
    column = outcomes.c.observed_at
    if dialect == "postgresql":
        written = func.to_char(func.timezone("UTC", column), 'YYYY-MM-DD"T"HH24:MI:SS')
    else:
        written = func.replace(cast(column, Text), " ", "T")  # SQLite keeps text, in UTC
    return (
        select(
            func.substr(written, 1, letters).label("step"),
            func.count().label("outcomes"),
            func.sum(outcomes.c.difference).label("total"),
        )
        .filter_by(space=space, tenant=tenant)
        .where(column >= start)
        .group_by("step")
    )


def _ratings(space: str, tenant: str, start: datetime) -> Any:
    rated = feedback.c.metric_name == "rating", feedback.c.created_at >= start
    return (
        select(feedback.c.created_at, feedback.c.value, traces.c.content["mode"].as_string())
        .join(traces, traces.c.id == feedback.c.trace)
        .where(*rated, traces.c.tenant == tenant, traces.c.content["space"].as_string() == space)
    )


def _count(step: Step | None, row: Any) -> None:
    if step is None:  # of a clock that was ahead
        return
    for counts, name in ((step.by_effort, row.effort), (step.by_mode, row.mode)):
        counts[name] = counts.get(name, 0) + row.requests
    step.before.add(row.before, row.searched)
    step.after.add(row.after, row.searched)
    step.search_tokens.add(row.tokens, row.searches)


def _key(moment: datetime, letters: int) -> str:
    return moment.astimezone(UTC).isoformat()[:letters]


def _moment(key: str) -> datetime:
    return datetime.fromisoformat(key + _MIDNIGHT[len(key) :]).replace(tzinfo=UTC)
