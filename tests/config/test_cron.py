"""The times that cron's fields name."""

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest

from config.cron import Cron


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"{text}+00:00")


@pytest.mark.parametrize(
    ("fields", "moment", "last"),
    [
        ("0 3 * * *", "2026-11-27 12:00", "2026-11-27 03:00"),
        ("0 3 * * *", "2026-11-27 02:59:59", "2026-11-26 03:00"),
        ("0 3 * * *", "2026-11-27 03:00", "2026-11-27 03:00"),
        ("0 3 * * *", "2027-01-01 00:00", "2026-12-31 03:00"),
        ("*/20 * * * *", "2026-11-27 12:39:59", "2026-11-27 12:20"),
        ("30 3,15 * * *", "2026-11-27 15:29", "2026-11-27 03:30"),
        ("0 3 * * 0", "2026-11-27 12:00", "2026-11-22 03:00"),
        ("0 3 * * sun", "2026-11-22 03:00", "2026-11-22 03:00"),
        ("0 3 1 * *", "2026-11-27 12:00", "2026-11-01 03:00"),
        ("0 3 31 * *", "2026-11-27 12:00", "2026-10-31 03:00"),
        ("0 3 29 2 *", "2026-11-27 12:00", "2024-02-29 03:00"),
        ("0 3 29 2 *", "2103-11-27 12:00", "2096-02-29 03:00"),  # 2100 has none
    ],
)
def test_last_time_before_a_moment(fields: str, moment: str, last: str) -> None:
    assert Cron(fields).last(at(moment)) == at(last)


@pytest.mark.parametrize(
    ("fields", "moment", "following"),
    [
        ("0 3 * * *", "2026-11-27 02:59:59", "2026-11-27 03:00"),
        ("0 3 * * *", "2026-11-27 03:00", "2026-11-28 03:00"),
        ("*/20 * * * *", "2026-12-31 23:45", "2027-01-01 00:00"),
        ("0 3 * * 0", "2026-11-27 12:00", "2026-11-29 03:00"),
        ("0 3 29 2 *", "2096-03-01 00:00", "2104-02-29 03:00"),  # 2100 has none
    ],
)
def test_next_time_after_a_moment(fields: str, moment: str, following: str) -> None:
    assert Cron(fields).next(at(moment)) == at(following)


@pytest.fixture(params=["Europe/Berlin", "America/New_York", "Pacific/Auckland"])
def local_time(request: pytest.FixtureRequest) -> Iterator[None]:
    """A machine whose local time has daylight saving."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = request.param
    time.tzset()
    yield
    os.environ.pop("TZ")
    if before is not None:
        os.environ["TZ"] = before
    time.tzset()


@pytest.mark.usefixtures("local_time")
def test_every_day_has_each_time_once_also_where_clocks_go_forward_and_back() -> None:
    year = [
        datetime(2026, 1, 1, 23, 59, tzinfo=UTC) + timedelta(hours=passed) for passed in range(0, 24 * 364, 3)
    ]
    moments = [moment.astimezone() for moment in year]
    assert len({moment.utcoffset() for moment in moments}) == 2
    for hour in (0, 1, 2, 3, 13):
        cron = Cron(f"30 {hour} * * *")
        named = {cron.last(moment) for moment in moments}
        assert named == {moment.replace(hour=hour, minute=30) for moment in year}


def test_moments_of_any_zone_are_the_same_moment() -> None:
    moment = datetime(2026, 11, 27, 1, 0, tzinfo=timezone(timedelta(hours=-5)))  # 06:00 UTC
    assert Cron("0 3 * * *").last(moment) == datetime(2026, 11, 27, 3, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    "text", ["", "never", "0 3 * *", "60 3 * * *", "0 3 30 2 *", "0 3 * * someday", "@daily"]
)
def test_what_names_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        Cron(text)


def test_space_between_fields_does_not_matter() -> None:
    assert Cron(" 0  3\t* * * ").text == "0 3 * * *"
