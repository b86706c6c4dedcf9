"""Nights by the clock: none is lost, none runs twice."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from config.cron import Cron
from memory.night import NightRecord
from memory.state import State
from server.schedule import Schedule


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
            self.schedule = Schedule(Cron(self.cron), "space", self.state)
        due = self.schedule.due(self.nights, at(moment))
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
    other = Schedule(Cron(installation.cron), "space", installation.state)
    assert other.due([], at("2026-11-26 12:01")) is None
    elsewhere = Schedule(Cron(installation.cron), "another", installation.state)
    assert elsewhere.due([], at("2026-11-27 12:00")) is None, "another space has missed nothing"
    installation.restart()
    assert installation.look("2026-11-27 03:00") == at("2026-11-27 03:00")
