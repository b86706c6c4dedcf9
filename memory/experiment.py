"""Whether steering is worth it: a slice of traffic is answered unsteered, and the two arms are compared.

Owns the values that both arms are compared by, the switch that turns steering off, and what they say at any
time. Knows nothing of how requests get their arm or of how values come about.

Whoever is assigned (a user, else a prompt) counts once per metric, with the first value, so that values are
as independent as assignment is. Harm is decided by the one test there is (`memory/evidence.py`): the mean of
the steered values since the last held-out one, less that one, is a difference that is not below zero in
expectation if steering does no harm. Intervals, for people, are made of two asymptotic confidence sequences,
one for each arm's mean (a normal mixture: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, arXiv 2103.06476,
theorem 2.2): they hold however often one looks.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal, get_args

from sqlalchemy import delete, func, insert, select

from memory.database import Database
from memory.episode import now
from memory.evidence import Evidence, weigh
from memory.schema import experiment_switches, experiment_values

Arm = Literal["steered", "holdout"]
Metric = Literal["rating", "agreement", "tokens", "latency_s"]
"""What people said of answers, in [0, 1]; whether they are what samples agree on, 0 or 1; how many tokens
they have; how long they took."""
ARMS: tuple[Arm, ...] = get_args(Arm)
METRICS: tuple[Metric, ...] = get_args(Metric)
OUTCOMES: tuple[Metric, ...] = ("rating", "agreement")
"""Metrics of which more is better, from 0 to 1: they decide."""
STAKE = 1 / len(OUTCOMES)
"""Of each outcome's e-values: that either reaches 20 by chance is as unlikely as for one with the whole."""

ALPHA = 0.05
"""Chance that an interval ever misses, in the limit; half of it for either arm."""
FIRST = 50
"""Values of each arm before an interval is given: before, the limit says little. With 20 up to 5.5 % of
simulated intervals missed at some time, with these 3.3 %."""
TIGHTEST = 500
"""Values of an arm at which its mean's interval is as tight as can be."""
MOST = 200_000
"""Values of a tenant that are kept; of more the oldest go."""


@dataclass(frozen=True)
class Value:
    """What came of one unit in one arm."""

    metric: Metric
    arm: Arm
    unit: str
    """Digest of the user or the prompt that the arm was assigned to."""
    value: float


@dataclass(frozen=True)
class Switch:
    """Whether steering is off for a tenant, and why."""

    off: bool = False
    cause: Literal["evidence", "operator"] = "operator"
    message: str = ""
    at: datetime | None = None
    """None: it was never touched."""


@dataclass
class Mean:
    """A mean that is added up, and the squares around it (Welford)."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        """Take one value."""
        self.n += 1
        before = value - self.mean
        self.mean += before / self.n
        self.squares += before * (value - self.mean)


@dataclass
class Comparison:
    """Both arms by one metric, value after value in the order in which they were noted."""

    metric: Metric
    arms: dict[Arm, Mean] = field(default_factory=lambda: {arm: Mean() for arm in ARMS})
    differences: list[float] = field(default_factory=list)
    """Of outcomes: steered less held out, one for each held-out value."""
    _since: Mean = field(default_factory=Mean)

    def add(self, value: Value) -> None:
        """Take the next value."""
        self.arms[value.arm].add(value.value)
        if self.metric not in OUTCOMES:
            return
        if value.arm == "steered":
            self._since.add(value.value)
        elif self._since.n:
            self.differences.append(self._since.mean - value.value)
            self._since = Mean()

    @property
    def difference(self) -> float | None:
        """Mean of the steered arm less that of the other; None while one has no value."""
        if not all(arm.n for arm in self.arms.values()):
            return None
        return self.arms["steered"].mean - self.arms["holdout"].mean

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the difference of the true means lies; None while too little is known."""
        difference = self.difference
        if difference is None or min(arm.n for arm in self.arms.values()) < FIRST:
            return None
        radius = sum(
            half_width(arm.n) * math.sqrt((arm.squares + self._unseen) / (arm.n + 1))
            for arm in self.arms.values()
        )
        return difference - radius, difference + radius

    @property
    def _unseen(self) -> float:
        """Variance that one more value might bring: that of all values being equal is no proof of none."""
        return 0.25 if self.metric in OUTCOMES else 0.0

    @property
    def evidence(self) -> Evidence | None:
        """What is known of steering doing good or harm; None of metrics that decide nothing."""
        return weigh(self.differences, stake=STAKE) if self.metric in OUTCOMES else None


def half_width(n: int, alpha: float = ALPHA / len(ARMS)) -> float:
    """Return half the width of a mean's confidence sequence after `n` values, in standard deviations."""
    rho2 = (-2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))) / TIGHTEST
    grown = n * rho2 + 1
    return math.sqrt(2 * grown / (n**2 * rho2) * math.log(math.sqrt(grown) / alpha))


def harm(comparisons: Iterable[Comparison]) -> str | None:
    """Return what proves that steering harms, as a sentence; None: nothing does."""
    for one in comparisons:
        evidence = one.evidence
        if evidence is not None and evidence.standing == "retired":
            return (
                f"{one.metric} is {-evidence.mean:.2f} lower where requests are steered, beside"
                f" {evidence.n} that are not: e-value {min(evidence.e_against, 1e6):.3g}"
            )
    return None


class Experiments:
    """The values and switches of a space's tenants. Everything blocks."""

    def __init__(self, state: Database, space: str) -> None:
        self._state, self._space = state, space

    def note(self, tenant: str, values: Iterable[Value]) -> None:
        """Keep values; a unit counts once per metric, with its first one.

        Raises:
            NoRoomError: the disk is too full.
            StateUnavailableError: the database does not answer.
        """
        first: dict[tuple[str, str], Value] = {}
        for value in values:
            first.setdefault((value.metric, value.unit), value)
        if not first:
            return
        self._state.room.demand("values of an experiment")
        mine = {"space": self._space, "tenant": tenant}
        table = experiment_values
        known = select(table.c.metric, table.c.unit).filter_by(**mine)
        with self._state.write() as connection:
            for metric, unit in connection.execute(
                known.where(table.c.unit.in_({unit for _, unit in first}))
            ):
                first.pop((metric, unit), None)
            if first:
                at = now()
                rows = [mine | vars(value) | {"noted_at": at} for value in first.values()]
                connection.execute(insert(table), rows)
                count = connection.scalar(select(func.count()).select_from(table).filter_by(**mine)) or 0
                if count > MOST:  # numbers are of all tenants
                    own = select(table.c.number).filter_by(**mine).order_by(table.c.number)
                    oldest = connection.scalar(own.offset(count - MOST).limit(1))
                    connection.execute(delete(table).filter_by(**mine).where(table.c.number < oldest))

    def values(self, after: int = 0, tenant: str | None = None) -> list[tuple[int, str, Value]]:
        """Return the values that were noted after one, each with its number and tenant, in their order.

        Args:
            after: Number of the one; 0: all are returned.
            tenant: Whose; None: of every tenant.

        Raises:
            StateUnavailableError: the database does not answer.
        """
        table = experiment_values
        columns = (table.c.tenant, table.c.metric, table.c.arm, table.c.unit, table.c.value)
        query = select(table.c.number, *columns).filter_by(space=self._space).where(table.c.number > after)
        if tenant is not None:
            query = query.filter_by(tenant=tenant)
        with self._state.read() as connection:
            rows = connection.execute(query.order_by(table.c.number))
            return [(number, whose, Value(*row)) for number, whose, *row in rows]

    def switches(self) -> dict[str, Switch]:
        """Return whether steering is off, by the tenants for whom it was ever turned.

        Raises:
            StateUnavailableError: the database does not answer.
        """
        table = experiment_switches
        columns = (table.c.tenant, table.c.off, table.c.cause, table.c.message, table.c.at)
        with self._state.read() as connection:
            rows = connection.execute(select(*columns).filter_by(space=self._space))
            return {tenant: Switch(*row) for tenant, *row in rows}

    def turn(self, tenant: str, switch: Switch) -> Switch:
        """Turn steering off or on, and return how it is: what the evidence turns off may be off already.

        Turned on, the experiment begins anew: its values are deleted.

        Raises:
            StateUnavailableError, NoRoomError: the state cannot be written.
        """
        mine = {"space": self._space, "tenant": tenant}
        table = experiment_switches
        turned = replace(switch, at=now())
        with self._state.write() as connection:
            query = select(table.c.off, table.c.cause, table.c.message, table.c.at).filter_by(**mine)
            known = connection.execute(query).one_or_none()
            if known is not None and known.off == switch.off:
                return Switch(*known)
            connection.execute(delete(table).filter_by(**mine))
            connection.execute(insert(table).values(mine | vars(turned)))
            if not switch.off:
                connection.execute(delete(experiment_values).filter_by(**mine))
        return turned
