"""Pages of episodes, newest first.

Owns the order, what a cursor says, and that a page ends between two episodes also where many have one time.
Knows nothing of stores: they give episodes in the order of time alone.
"""

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias
from uuid import UUID

Summary: TypeAlias = dict[str, Any]
"""An episode without its vectors, as `Episode.summary` has it."""


@dataclass(frozen=True)
class Place:
    """Behind which episode a page ends."""

    created_at: datetime
    id: str

    @classmethod
    def of(cls, summary: Summary) -> "Place":
        """Return the place behind an episode."""
        return cls(datetime.fromisoformat(summary["created_at"]), summary["id"])

    @classmethod
    def parse(cls, cursor: str) -> "Place":
        """Return the place that `cursor` names.

        Raises:
            ValueError: it is no cursor of ours.
        """
        try:
            time, _, name = base64.urlsafe_b64decode(cursor.encode("ascii")).decode("ascii").partition(" ")
            moment, name = datetime.fromisoformat(time), str(UUID(name))
            if moment.tzinfo is None:
                raise ValueError("a time without its zone")
            return cls(moment.astimezone(UTC), name)
        except (ValueError, OverflowError, binascii.Error) as error:
            raise ValueError("not a cursor of a page") from error

    @property
    def cursor(self) -> str:
        """The place as clients hold it."""
        return base64.urlsafe_b64encode(f"{self.created_at.isoformat()} {self.id}".encode()).decode()

    @property
    def rank(self) -> tuple[datetime, str]:
        """What falls from episode to episode of a list."""
        return self.created_at, self.id


@dataclass(frozen=True)
class Page:
    """Some episodes of a list, in its order."""

    episodes: list[Summary]
    next: Place | None
    """Where the next page begins; None: there is none."""


def newest_first(
    newest: Callable[[datetime | None, int], list[Summary]], limit: int, after: Place | None
) -> Page:
    """Return one page.

    Args:
        newest: Gives up to so many episodes, created at a time or before, newest first; those of one time in
            any order.
        limit: Most episodes on the page.
        after: Where the page before ended; None: there was none.
    """
    asked, start = limit + 1, None if after is None else after.created_at
    while True:
        found = newest(start, asked)
        places = [Place.of(summary) for summary in found]
        last = None if len(found) < asked else places[-1].created_at
        # Of the last time there may be more than were asked for, so that those first by id are missing.
        rows = [
            (place, summary)
            for place, summary in zip(places, found, strict=True)
            if place.created_at != last and (after is None or place.rank < after.rank)
        ]
        if last is None or len(rows) >= limit:
            break
        asked *= 2
    rows.sort(key=lambda row: row[0].rank, reverse=True)
    page = rows[:limit]
    more = len(rows) > limit or last is not None
    return Page([summary for _, summary in page], page[-1][0] if page and more else None)
