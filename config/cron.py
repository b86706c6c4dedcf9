"""The times that cron's five fields name, in UTC.

Owns the looks back from a moment to the last of them, and ahead to the next. UTC has no daylight saving, so
no day has an hour twice or lacks one. The fields are read by Celery: where days of the month and of the week
are both given, a day must be both.
"""

from datetime import UTC, date, datetime, time, timedelta

LOOK_DAYS = 8 * 366 + 1
"""29 February may be eight years away."""


class Cron:
    """Cron's five fields.

    Raises:
        ValueError: what is given is something else, or names no day of any year.
    """

    def __init__(self, text: str) -> None:
        from celery.schedules import (
            ParseException,
            crontab,
        )  # a quarter of a second that not all processes need

        self.text = " ".join(text.split())
        try:
            self._fields = crontab.from_string(self.text)
        except (ParseException, ValueError) as error:
            raise ValueError(str(error)) from error

    def last(self, moment: datetime) -> datetime | None:
        """Return the last time named that is not after `moment`, in UTC; None: there was none for years."""
        moment = moment.astimezone(UTC)
        for days in range(LOOK_DAYS):
            times = [at for at in self._times(moment.date() - timedelta(days=days)) if at <= moment]
            if times:
                return max(times)
        return None

    def next(self, moment: datetime) -> datetime | None:
        """Return the first time named that is after `moment`, in UTC; None: there will be none for years."""
        moment = moment.astimezone(UTC)
        for days in range(LOOK_DAYS):
            times = [at for at in self._times(moment.date() + timedelta(days=days)) if at > moment]
            if times:
                return min(times)
        return None

    def _times(self, day: date) -> list[datetime]:
        if not self._names(day):
            return []
        fields = self._fields
        return [
            datetime.combine(day, time(hour, minute), UTC) for hour in fields.hour for minute in fields.minute
        ]

    def _names(self, day: date) -> bool:
        fields = self._fields
        return (
            day.month in fields.month_of_year
            and day.day in fields.day_of_month
            and day.isoweekday() % 7 in fields.day_of_week  # cron's week begins with Sunday as 0
        )
