"""When nights are due by themselves.

Owns the three reasons: cron has named a time that no record answers for, enough episodes are new, or a prior
has learned from what was erased. Records and clock decide, no timer does, so nothing that stops, restarts or
changes its clock loses a night or repeats one: of those missed meanwhile, the last is made up for. What lies
before the schedule was first followed was not missed. What an operator has chosen stands in the state, where
every gateway sees it, above the settings. Knows nothing of how nights start.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from config.cron import Cron
from memory.night import NightRecord, Trigger
from memory.state import ChosenSchedule, ErasedRow, State

NEVER = "never"
RETRY_AFTER = timedelta(minutes=10)
"""Of a night by episodes or erasure, after one that failed; those by hand and by schedule are not held up."""
ERASURE_AFTER = timedelta(hours=1)
"""What is erased within so long is one night's work."""
ERASURE_TRIES = 3
"""Nights after an erasure that may fail; then it is left to the next one for another reason."""


@dataclass(frozen=True)
class Plan:
    """When nights start by themselves."""

    cron: str
    """Cron's five fields in UTC, or `never`."""
    episodes: int
    """New episodes that start one; 0: never."""


@dataclass(frozen=True)
class Due:
    """A night that should be started."""

    trigger: Trigger
    at: datetime
    """Since when; of the schedule, the time that cron named."""

    @property
    def scheduled_for(self) -> datetime | None:
        """The time of the schedule that it is for."""
        return self.at if self.trigger == "schedule" else None


@dataclass(frozen=True)
class Outlook:
    """What is planned, and what has become of it."""

    plan: Plan
    settings: Plan
    chosen: ChosenSchedule
    new_episodes: int
    """Since the last night that consolidated."""
    next_run: datetime | None
    """The next time that cron names."""
    due: tuple[Due, ...]
    erasure: Due | None
    """The night that an erasure makes due, now or later."""
    running: NightRecord | None
    last: NightRecord | None
    """The last night that has ended."""


class Schedule:
    """Says which nights of a space are due.

    Args:
        settings: The plan where no operator has chosen another one.
        space: Whose nights they are.
        state: Knows what was chosen, what was erased, and from which moment on a schedule is followed; of
            another cron that is now.
        count_new: Returns how many episodes were first remembered after a moment; blocks.
    """

    def __init__(
        self, settings: Plan, space: str, state: State, count_new: Callable[[datetime], int] = lambda _: 0
    ) -> None:
        self._settings, self._space, self._state, self._count_new = settings, space, state, count_new
        self._cron: Cron | None = None
        self._followed: tuple[str, datetime] | None = None
        """The cron that is followed, and since when."""

    def plan(self) -> Plan:
        """Return what holds: what an operator has chosen, else the settings.

        Raises:
            StateUnavailableError: the state cannot be read.
        """
        return self._plan(self._state.chosen_schedule(self._space))

    def choose(self, chosen: ChosenSchedule, moment: datetime) -> None:
        """Let an operator's choice hold in the place of what was chosen before, on every gateway.

        Raises:
            StateUnavailableError, NoRoomError: the state cannot be written.
        """
        self._state.choose_schedule(self._space, chosen, moment)

    def note_erasure(self, rows: Mapping[str, bool], since: datetime | None = None) -> None:
        """Note rows that learned from what was erased, and whether each is in the active version.

        `since`: when the erasure began that notes them.

        Raises:
            StateUnavailableError, NoRoomError: the state cannot be written.
        """
        self._state.note_erasure(self._space, rows, since)

    def due(self, nights: Sequence[NightRecord], moment: datetime) -> tuple[Due, ...]:
        """Return the nights that should be started at `moment`, the most urgent first.

        Args:
            nights: All nights of the space, newest first.
            moment: Now.

        Raises:
            StateUnavailableError, NoRoomError: the state cannot be read or written.
            StoreUnavailableError: episodes cannot be counted.
        """
        plan = self.plan()
        by_clock = self._missed(plan.cron, [night.scheduled_for for night in nights], moment)
        if by_clock is not None:
            return (Due("schedule", by_clock),)
        if _held_up(nights, moment):
            return ()
        found = []
        erasure = self._after_erasure(nights)
        if erasure is not None and erasure.at <= moment:
            found.append(erasure)
        if plan.episodes and self._new_episodes(nights, moment) >= plan.episodes:
            found.append(Due("episodes", moment))
        return tuple(found)

    def missed(self, scheduled: Collection[datetime | None], moment: datetime) -> datetime | None:
        """Return the last time that cron has named, if no night was for it.

        Args:
            scheduled: Times that nights were for, the last one at least.
            moment: Now.

        Raises:
            StateUnavailableError, NoRoomError: the state cannot be read or written.
        """
        return self._missed(self.plan().cron, scheduled, moment)

    def outlook(self, nights: Sequence[NightRecord], moment: datetime) -> Outlook:
        """Return what is planned, for people. Arguments and errors are those of `due`."""
        chosen = self._state.chosen_schedule(self._space)
        plan = self._plan(chosen)
        return Outlook(
            plan=plan,
            settings=self._settings,
            chosen=chosen,
            new_episodes=self._new_episodes(nights, moment),
            next_run=None if plan.cron == NEVER else self._fields(plan.cron).next(moment),
            due=self.due(nights, moment),
            erasure=self._after_erasure(nights),
            running=next((night for night in nights if not night.ended), None),
            last=next((night for night in nights if night.ended), None),
        )

    def _plan(self, chosen: ChosenSchedule) -> Plan:
        return Plan(
            self._settings.cron if chosen.cron is None else chosen.cron,
            self._settings.episodes if chosen.episodes is None else chosen.episodes,
        )

    def _missed(self, cron: str, scheduled: Collection[datetime | None], moment: datetime) -> datetime | None:
        since = self._since(cron, moment)
        last = None if cron == NEVER else self._fields(cron).last(moment)
        if last is None or last <= since:
            return None
        return None if last in scheduled else last

    def _fields(self, cron: str) -> Cron:
        if self._cron is None or self._cron.text != cron:
            self._cron = Cron(cron)
        return self._cron

    def _since(self, cron: str, moment: datetime) -> datetime:
        # Nights are not missed while there are to be none, so that is followed, too.
        text = cron if cron == NEVER else self._fields(cron).text
        if (
            self._followed is None
            or self._followed[0] != text
            or self._followed[1] > moment  # the clock was ahead: no night until then otherwise
        ):
            self._followed = text, self._state.follow(self._space, text, moment)
        return self._followed[1]

    def _new_episodes(self, nights: Sequence[NightRecord], moment: datetime) -> int:
        # The clock may have been ahead. What a failed night was to consolidate is still new.
        known = (night for night in nights if night.created_at <= moment and _consolidated(night))
        last = next(known, None)
        return self._count_new(last.created_at if last is not None else datetime.fromtimestamp(0, UTC))

    def _after_erasure(self, nights: Sequence[NightRecord]) -> Due | None:
        """Return the night that rids the active prior of what was erased, if none did or is about to."""
        waiting = [row for row in self._state.erased_rows(self._space) if row.active and _left(row, nights)]
        return Due("erasure", waiting[0].erased_at + ERASURE_AFTER) if waiting else None


def _left(row: ErasedRow, nights: Sequence[NightRecord]) -> bool:
    """Whether no night has worked without the row since, and some may still be tried for that."""
    since = [night for night in nights if night.created_at > row.erased_at]
    failed = [night for night in since if night.state == "failed"]
    tried = sum(night.trigger == "erasure" for night in failed)
    return len(failed) == len(since) and tried < ERASURE_TRIES


def _held_up(nights: Sequence[NightRecord], moment: datetime) -> bool:
    """Whether the last night has failed just now."""
    known = [night for night in nights if night.created_at <= moment]  # the clock may have been ahead
    if not known or known[0].state != "failed":
        return False
    ended = known[0].finished_at or known[0].created_at
    return timedelta() <= moment - ended < RETRY_AFTER


def _consolidated(night: NightRecord) -> bool:
    """Whether the episodes before this night are not new any more."""
    if night.state == "skipped":
        return night.trigger == "episodes"  # counted and found too poor: not again at once
    return night.state != "failed"
