"""Nights by the clock: none is lost, none runs twice."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from config.cron import Cron
from memory.night import NightRecord
from server.schedule import Schedule


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"{text}+00:00")


@dataclass
class Installation:
    """A data folder, the records in it, and a gateway that comes and goes."""

    root: Path
    cron: str = "0 3 * * *"
    nights: list[NightRecord] = field(default_factory=list)
    schedule: Schedule | None = None

    def restart(self) -> None:
        self.schedule = None

    def look(self, moment: str) -> datetime | None:
        """Ask whether a night is due, start it when one is, and return what it was started for."""
        if self.schedule is None:
            self.schedule = Schedule(Cron(self.cron), self.root / "schedule" / "space.json")
        due = self.schedule.due(self.nights, at(moment))
        if due is not None:
            created = at(moment)
            night = NightRecord(str(len(self.nights)), "space", "schedule", created, created, due)
            self.nights.append(night)
        return due


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    made = Installation(tmp_path)
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


def test_a_machine_that_is_on_for_an_hour_a_day_has_its_nights(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
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


def test_a_clock_that_was_ahead_at_the_first_start_stops_no_night(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    assert installation.look("2031-05-05 05:05") is None
    assert installation.look("2026-11-26 12:00") is None
    installation.restart()
    assert installation.look("2026-11-27 03:00") == at("2026-11-27 03:00")


def test_a_clock_that_was_behind_at_the_start_costs_one_night_at_most(tmp_path: Path) -> None:
    """A board without a battery wakes up in 1970, until it has asked for the time."""
    installation = Installation(tmp_path)
    moments = [at("1970-01-01 00:00:09"), *(at("2026-11-26 12:00") + timedelta(hours=n) for n in range(48))]
    for moment in moments:
        installation.look(moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S"))
    assert [night.scheduled_for for night in installation.nights] == [
        at("2026-11-26 03:00"),
        at("2026-11-27 03:00"),
        at("2026-11-28 03:00"),
    ]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"cron": "0 3 * * *"}', b"\xff", b'{"cron": 1, "since": 2}']
)
def test_a_spoilt_file_stops_no_night(installation: Installation, content: bytes) -> None:
    (installation.root / "schedule" / "space.json").write_bytes(content)
    installation.restart()
    assert installation.look("2026-11-26 13:00") is None
    assert installation.look("2026-11-27 03:00") == at("2026-11-27 03:00")


@pytest.mark.parametrize("since", ["2026-11-26T12:00:00", "yesterday"])
def test_a_beginning_that_is_no_moment_begins_anew(installation: Installation, since: str) -> None:
    file = installation.root / "schedule" / "space.json"
    file.write_text(f'{{"cron": "0 3 * * *", "since": "{since}"}}')
    installation.restart()
    assert installation.look("2026-11-27 02:00") is None
    assert installation.look("2026-11-27 03:00") == at("2026-11-27 03:00")
