"""Nights by the clock: none is lost, none runs twice."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from memory.episode import now
from memory.night import NightRecord
from memory.state import ChosenSchedule, State
from server.schedule import ERASURE_AFTER, ERASURE_TRIES, Due, Plan, Schedule


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"{text}+00:00")


@dataclass
class Installation:
    """A state, the records of its nights, and a gateway that comes and goes."""

    state: State
    cron: str = "0 3 * * *"
    nights: list[NightRecord] = field(default_factory=list)
    schedule: Schedule | None = None

    def restart(self) -> None:
        self.schedule = None

    def look(self, moment: str) -> datetime | None:
        """Ask whether a night is due, start it when one is, and return what it was started for."""
        if self.schedule is None:
            self.schedule = Schedule(Plan(self.cron, 0), "space", self.state)
        found = self.schedule.due(self.nights, at(moment))
        due = found[0].scheduled_for if found else None
        if due is not None:
            created = at(moment)
            night = NightRecord(str(len(self.nights)), "space", "schedule", created, created, due)
            self.nights.append(night)
        return due


@pytest.fixture
def installation(state: State) -> Installation:
    made = Installation(state)
    assert made.look("2026-11-26 12:00") is None
    return made


def test_a_fresh_installation_has_missed_no_night(installation: Installation) -> None:
    installation.restart()
    assert installation.look("2026-11-27 02:59") is None
    assert installation.look("2026-11-27 03:00") == at("2026-11-27 03:00")


def test_a_scheduled_time_has_one_night(installation: Installation) -> None:
    for hour in range(3, 24):
        installation.look(f"2026-11-27 {hour:02}:00")
        installation.restart()
        installation.look(f"2026-11-27 {hour:02}:30")
    assert [night.scheduled_for for night in installation.nights] == [at("2026-11-27 03:00")]


def test_a_machine_that_was_off_gets_its_night_in_the_morning(installation: Installation) -> None:
    installation.restart()
    assert installation.look("2026-11-27 08:12") == at("2026-11-27 03:00")
    assert installation.look("2026-11-27 08:13") is None
    assert installation.look("2026-11-28 03:00") == at("2026-11-28 03:00")


def test_of_many_missed_nights_the_last_is_made_up_for(installation: Installation) -> None:
    installation.restart()
    assert installation.look("2026-12-24 08:12") == at("2026-12-24 03:00")
    assert installation.look("2026-12-24 08:13") is None


def test_a_machine_that_is_on_for_an_hour_a_day_has_its_nights(state: State) -> None:
    installation = Installation(state)
    for day in range(1, 8):
        installation.restart()
        for minute in (0, 30, 59):
            installation.look(f"2026-11-{day:02} 09:{minute:02}")
    assert len(installation.nights) == 6, "the first day has missed none"


def test_what_a_new_schedule_names_before_it_is_followed_is_not_due(installation: Installation) -> None:
    installation.look("2026-11-27 03:00")
    installation.cron = "0 5 * * *"
    installation.restart()
    assert installation.look("2026-11-27 10:00") is None
    assert installation.look("2026-11-28 05:00") == at("2026-11-28 05:00")


def test_a_night_is_overdue_until_one_was_for_the_last_time(installation: Installation) -> None:
    first = installation.look("2026-11-27 03:00")
    schedule = installation.schedule
    assert schedule is not None
    assert schedule.missed([None, first], at("2026-11-28 02:59")) is None
    assert schedule.missed([None, first], at("2026-11-28 04:00")) == at("2026-11-28 03:00")
    assert schedule.missed([at("2026-11-28 03:00")], at("2026-11-28 04:00")) is None


def test_a_clock_that_goes_back_a_little_repeats_no_night(installation: Installation) -> None:
    assert installation.look("2026-11-27 03:00:01") == at("2026-11-27 03:00")
    for moment in ("02:59:57", "03:00:00", "02:00:00", "03:00:02", "04:00:00"):
        installation.restart()
        assert installation.look(f"2026-11-27 {moment}") is None, moment


def test_a_clock_that_was_years_ahead_stops_no_night(installation: Installation) -> None:
    installation.look("2026-11-27 03:00")
    assert installation.look("2031-05-05 05:05") == at("2031-05-05 03:00")
    installation.restart()
    assert installation.look("2026-11-27 12:00") is None, "it had its night"
    assert installation.look("2026-11-28 03:00") == at("2026-11-28 03:00")


def test_a_clock_that_was_ahead_at_the_first_start_stops_no_night(state: State) -> None:
    installation = Installation(state)
    assert installation.look("2031-05-05 05:05") is None
    assert installation.look("2026-11-26 12:00") is None
    installation.restart()
    assert installation.look("2026-11-27 03:00") == at("2026-11-27 03:00")


def test_a_clock_that_was_behind_at_the_start_costs_one_night_at_most(state: State) -> None:
    """A board without a battery wakes up in 1970, until it has asked for the time."""
    installation = Installation(state)
    moments = [at("1970-01-01 00:00:09"), *(at("2026-11-26 12:00") + timedelta(hours=n) for n in range(48))]
    for moment in moments:
        installation.look(moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S"))
    assert [night.scheduled_for for night in installation.nights] == [
        at("2026-11-26 03:00"),
        at("2026-11-27 03:00"),
        at("2026-11-28 03:00"),
    ]


def test_gateways_that_begin_at_once_follow_from_one_moment(installation: Installation) -> None:
    other = Schedule(Plan(installation.cron, 0), "space", installation.state)
    assert other.due([], at("2026-11-26 12:01")) == ()
    elsewhere = Schedule(Plan(installation.cron, 0), "another", installation.state)
    assert elsewhere.due([], at("2026-11-27 12:00")) == (), "another space has missed nothing"
    installation.restart()
    assert installation.look("2026-11-27 03:00") == at("2026-11-27 03:00")


def test_what_an_operator_chose_holds_above_the_setting_on_every_gateway(installation: Installation) -> None:
    other = Schedule(Plan("0 3 * * *", 200), "space", installation.state)
    assert other.plan() == Plan("0 3 * * *", 200)
    assert installation.schedule is not None
    installation.schedule.choose(ChosenSchedule("0  5 * * *", 7), at("2026-11-26 13:00"))
    assert other.plan() == Plan("0  5 * * *", 7)
    assert installation.look("2026-11-27 04:00") is None
    assert installation.look("2026-11-27 05:00") == at("2026-11-27 05:00")
    installation.schedule.choose(ChosenSchedule(), at("2026-11-27 06:00"))
    assert other.plan() == Plan("0 3 * * *", 200)
    assert installation.look("2026-11-27 07:00") is None, "of a schedule that did not hold nothing was missed"
    assert installation.look("2026-11-28 03:00") == at("2026-11-28 03:00")


def test_what_is_named_while_there_are_to_be_no_nights_is_not_missed(installation: Installation) -> None:
    assert installation.schedule is not None
    installation.schedule.choose(ChosenSchedule("never"), at("2026-11-26 13:00"))
    assert installation.look("2026-11-27 04:00") is None
    installation.schedule.choose(ChosenSchedule(), at("2026-11-27 05:00"))
    assert installation.look("2026-11-27 06:00") is None
    assert installation.look("2026-11-28 03:00") == at("2026-11-28 03:00")


def night(number: int, created_at: datetime, state: Any = "promoted", trigger: Any = "api") -> NightRecord:
    return NightRecord(
        str(number), "space", trigger, created_at, created_at, state=state, finished_at=created_at
    )


def test_an_erasure_that_the_active_prior_learned_from_makes_one_night_due(state: State) -> None:
    schedule = Schedule(Plan("never", 0), "space", state)
    schedule.note_erasure({"v1/0": False})
    assert schedule.due([], now() + timedelta(days=1)) == (), "nobody is served by that"
    schedule.note_erasure({"v2/0": True, "v2/1": True})
    erased_at = state.erased_rows("space")[1].erased_at
    before = night(0, erased_at - timedelta(minutes=1))
    at_hand = erased_at + ERASURE_AFTER
    expected = Due("erasure", at_hand)
    assert schedule.due([before], at_hand - timedelta(seconds=1)) == (), "what comes soon goes with it"
    assert schedule.outlook([before], erased_at).erasure == expected
    assert schedule.due([before], at_hand) == (expected,)
    assert Schedule(Plan("never", 0), "another", state).due([], at_hand) == ()
    later = now() + timedelta(days=1)
    for end in ("promoted", "on trial", "refused", "skipped", "cancelled", "queued", "running"):
        made = night(1, now() + timedelta(minutes=1), end)
        assert schedule.due([made, before], later) == (), end
    failed = [
        night(number, now() + timedelta(minutes=number), "failed", "erasure")
        for number in range(ERASURE_TRIES, 0, -1)
    ]
    assert schedule.due([*failed[1:], before], later) == (expected,), "tried again"
    assert schedule.due([*failed[1:], before], failed[1].created_at + timedelta(minutes=9)) == (), (
        "not at once"
    )
    assert schedule.due([*failed, before], later) == (), "not for ever"


def test_the_outlook_says_what_is_planned_and_what_came_of_the_last_night(installation: Installation) -> None:
    counted: list[datetime] = []
    schedule = Schedule(
        Plan("0 3 * * *", 5), "space", installation.state, lambda since: counted.append(since) or 5
    )
    schedule.choose(ChosenSchedule(episodes=6), at("2026-11-26 13:00"))
    ended, open_ = night(1, at("2026-11-27 03:00")), night(2, at("2026-11-27 04:00"), "running")
    found = schedule.outlook([open_, ended], at("2026-11-27 04:30"))
    assert (found.plan, found.settings) == (Plan("0 3 * * *", 6), Plan("0 3 * * *", 5))
    assert found.chosen == ChosenSchedule(None, 6)
    assert found.next_run == at("2026-11-28 03:00")
    assert (found.running, found.last, found.new_episodes) == (open_, ended, 5)
    assert [one.trigger for one in found.due] == ["schedule"]
    assert set(counted) == {open_.created_at}
    schedule.choose(ChosenSchedule("never"), at("2026-11-27 05:00"))
    assert schedule.outlook([], at("2026-11-27 05:00")).next_run is None
    assert schedule.due([ended], at("2026-11-27 05:00")) == (Due("episodes", at("2026-11-27 05:00")),)
