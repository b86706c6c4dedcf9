"""The record of each night, from the request for it to its end.

Owns the states a night goes through, how often one was begun, and which records go. Knows nothing of what
happens in a night (`worker/`) or of who asks for one.

    Of the ended nights of a space that published no version, the newest `limit` stay. Versions are never
    deleted, and so are the records that they name.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, Connection, case, delete, false, func, insert, or_, select, update

from memory.database import Database
from memory.episode import LatentMemoryError, new_id, now
from memory.listing import Place
from memory.schema import nights
from memory.tenants import of_tenant

Trigger = Literal["api", "cli", "schedule", "episodes", "erasure"]
State = Literal["queued", "running", "promoted", "on trial", "refused", "skipped", "failed", "cancelled"]
Phase = Literal["snapshot", "load", "dataset", "train", "evidence", "publish"]

ENDED: frozenset[State] = frozenset({"promoted", "on trial", "refused", "skipped", "failed", "cancelled"})
"""States that a night stays in. A running one may be run again, for its worker may have died."""

_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]*")
_FIXED = ("space", "trigger", "created_at", "scheduled_for")


class NightError(LatentMemoryError):
    """Base of what the log raises.

    NightError
    ├── UnknownNightError   a change of a night that there is not
    ├── NightRunningError   another night of the space is queued, running, or was for the same scheduled time
    └── NightStateError     a change that a night cannot make, such as running again after its end
    """


class UnknownNightError(NightError):
    """A change of a night that there is not."""


class NightRunningError(NightError):
    """Another night of the space is queued or running, or was for the same scheduled time: `record`."""

    def __init__(self, record: "NightRecord") -> None:
        super().__init__(f"night {record.id} of space {record.space} is {record.state}")
        self.record = record


class NightStateError(NightError):
    """A change that a night cannot make."""


@dataclass(frozen=True)
class NightRecord:
    """What is known of one night. Times are in UTC."""

    id: str
    space: str
    trigger: Trigger
    created_at: datetime = field(default_factory=now)
    updated_at: datetime = field(default_factory=now)
    """Last sign of life of whoever works on it."""
    scheduled_for: datetime | None = None
    """The time of the schedule that it was started for, which may be long before it began."""
    state: State = "queued"
    phase: Phase = "snapshot"
    done: int = 0
    """Steps of the phase that are done, of `total`."""
    total: int = 0
    message: str = ""
    episodes: int = 0
    version: str | None = None
    """The prior it published."""
    parent: str | None = None
    """The prior that was active when it began."""
    evidence: dict[str, Any] | None = None
    """Of each new row: how often and by how much its answers were better, and where it stands."""
    error: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether it will not change any more."""
        return self.state in ENDED

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values, times in ISO 8601."""
        return {k: v.isoformat() if isinstance(v, datetime) else v for k, v in asdict(self).items()}


_NAMES = tuple(f.name for f in fields(NightRecord))
_COLUMNS = [nights.c[name] for name in _NAMES]
_NEWEST = nights.c.created_at.desc(), nights.c.id.desc()
_OPEN = nights.c.state.not_in(sorted(ENDED))


def _check_words(record: NightRecord) -> None:
    for name, words in (("state", State), ("phase", Phase), ("trigger", Trigger)):
        if getattr(record, name) not in get_args(words):
            raise ValueError(f"{getattr(record, name)!r} is no {name}")


@dataclass(frozen=True)
class NightPage:
    """Some nights of a list, newest first."""

    nights: list[NightRecord]
    next: Place | None
    """Where the next page begins; None: there is none."""


@dataclass(frozen=True)
class Tally:
    """Nights of one space that are in one state."""

    space: str
    state: State
    count: int
    last_end: datetime | None
    """When the last of them ended."""
    last_scheduled: datetime | None
    """The last time of the schedule until now that one was started for."""


class NightLog:
    """All nights of a state. Gateway, worker and command line may use it at once.

    Args:
        limit: Most ended nights of a space that are kept of those that published nothing; None: all.
    """

    def __init__(self, state: Database, limit: int | None = None) -> None:
        self._state, self._limit = state, limit

    def create(self, space: str, trigger: Trigger, scheduled_for: datetime | None = None) -> NightRecord:
        """Write and return a queued night, the only one of its space that has not ended; let old records go.

        Raises:
            NightRunningError: another one is queued or running, or was started for the same scheduled time.
            StateUnavailableError, NoRoomError: it cannot be written.
        """
        record = NightRecord(new_id(), space, trigger, scheduled_for=scheduled_for)
        if trigger not in get_args(Trigger):
            raise NightStateError(f"{trigger!r} is no trigger")
        same_time = nights.c.scheduled_for == scheduled_for if scheduled_for else false()
        with self._state.write() as connection:
            others = _found(connection, nights.c.space == space, or_(_OPEN, same_time))
            if others:
                raise NightRunningError(others[-1])
            connection.execute(insert(nights).values(_values(record)))
            if self._limit is not None:
                gone = nights.c.space == space, ~_OPEN, nights.c.version.is_(None)
                newest = select(nights.c.id).where(*gone).order_by(*_NEWEST).limit(self._limit)
                connection.execute(delete(nights).where(*gone, nights.c.id.not_in(newest)))
        return record

    def get(self, night_id: str) -> NightRecord | None:
        """Return one night, None when there is none of that id.

        Raises:
            StateUnavailableError: the state cannot be read.
        """
        with self._state.read() as connection:
            return _get(connection, night_id)

    def update(self, record: NightRecord) -> NightRecord:
        """Write a changed record and return it as written; an unchanged one is a sign of life.

        `updated_at` becomes now, and so do `started_at` of a night that runs and `finished_at` of one
        that ends, unless the record says when.

        Raises:
            UnknownNightError: there is no night of that id.
            NightStateError: it has ended, or the change is none that a night can make.
            StateUnavailableError, NoRoomError: it cannot be written.
        """
        with self._state.write() as connection:
            before = _get(connection, record.id)
            if before is None:
                raise UnknownNightError(f"there is no night {record.id!r}")
            _check_change(before, record)
            written = _timed(record)
            connection.execute(update(nights).filter_by(id=record.id).values(_values(written)))
        return written

    def cancel(self, night_id: str) -> NightRecord:
        """End a night that is queued or running, and return its record; its worker stops when it sees that.

        Raises:
            UnknownNightError: there is no night of that id.
            NightStateError: it has ended, or is publishing already.
            StateUnavailableError, NoRoomError: it cannot be written.
        """
        with self._state.write() as connection:
            night = _get(connection, night_id)
            if night is None:
                raise UnknownNightError(f"there is no night {night_id!r}")
            if night.phase == "publish" and not night.ended:
                raise NightStateError(
                    f"night {night.id} is publishing what it has learned, and ends by itself"
                )
            cancelled = replace(night, state="cancelled", message=f"cancelled in phase {night.phase}")
            _check_change(night, cancelled)
            written = _timed(cancelled)
            connection.execute(update(nights).filter_by(id=night.id).values(_values(written)))
        return written

    def list(self, space: str | None = None) -> list[NightRecord]:
        """Return the nights of a space, or all of them, newest first.

        Raises:
            StateUnavailableError: the state cannot be read.
        """
        with self._state.read() as connection:
            return _found(connection) if space is None else _found(connection, nights.c.space == space)

    def page(self, tenant: str, limit: int, after: Place | None = None) -> NightPage:
        """Return a page of a tenant's nights of every space, newest first.

        Args:
            tenant: Whose nights.
            limit: Most nights on the page.
            after: Where the page before ended; None: there was none.

        Raises:
            StateUnavailableError: the state cannot be read.
        """
        where = [of_tenant(nights.c.space, tenant)]
        if after is not None:
            time, same_time = nights.c.created_at < after.created_at, nights.c.created_at == after.created_at
            where.append(or_(time, same_time & (nights.c.id < after.id)))
        with self._state.read() as connection:
            found = _found(connection, *where, limit=limit + 1)
        page = found[:limit]
        last = Place(page[-1].created_at, page[-1].id) if len(found) > limit else None
        return NightPage(page, last)

    def tallies(self) -> Sequence[Tally]:
        """Return how many nights of each space are in each state.

        Raises:
            StateUnavailableError: the state cannot be read.
        """
        columns = nights.c.space, nights.c.state
        # A clock that was ahead has left times that are still to come.
        come = case((nights.c.scheduled_for <= now(), nights.c.scheduled_for))
        last = func.max(nights.c.finished_at), func.max(come)
        query = select(*columns, func.count(), *last).group_by(*columns)
        with self._state.read() as connection:
            return [Tally(*row) for row in connection.execute(query)]

    def running(self, space: str) -> NightRecord | None:
        """Return the night of the space that is queued or running.

        Raises:
            StateUnavailableError: the state cannot be read.
        """
        with self._state.read() as connection:
            open_ = _found(connection, nights.c.space == space, _OPEN)
        return open_[-1] if open_ else None

    def attempt(self, night_id: str, reached: int) -> int:
        """Note that a night is begun once more, and return how often it was since it last got further.

        Args:
            night_id: Of a night that there is.
            reached: Step of its training that it goes on from.

        Raises:
            UnknownNightError: there is no night of that id.
            StateUnavailableError, NoRoomError: it cannot be written.
        """
        query = select(nights.c.attempts, nights.c.reached).filter_by(id=night_id)
        with self._state.write() as connection:
            known = connection.execute(query).one_or_none()
            if known is None:
                raise UnknownNightError(f"there is no night {night_id!r}")
            attempts = 1 + (known.attempts if known.reached == reached else 0)
            noted = update(nights).filter_by(id=night_id).values(attempts=attempts, reached=reached)
            connection.execute(noted)
        return int(attempts)

    def forget_attempts(self, night_id: str) -> None:
        """Count the attempts of a night anew: it was stopped on purpose.

        Raises:
            StateUnavailableError, NoRoomError: it cannot be written.
        """
        with self._state.write() as connection:
            connection.execute(update(nights).filter_by(id=night_id).values(attempts=0))


def _found(
    connection: Connection, *where: ColumnElement[bool], limit: int | None = None
) -> list[NightRecord]:
    """Return the nights that meet all of `where`, newest first, or the newest of them."""
    query = select(*_COLUMNS).where(*where).order_by(*_NEWEST).limit(limit)
    return [NightRecord(**row) for row in connection.execute(query).mappings()]


def _get(connection: Connection, night_id: str) -> NightRecord | None:
    if not _ID.fullmatch(night_id):  # PostgreSQL looks for no text with zeros
        return None
    records = _found(connection, nights.c.id == night_id)
    return records[0] if records else None


def _values(record: NightRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in _NAMES}


def _check_change(before: NightRecord, after: NightRecord) -> None:
    if before.ended:
        raise NightStateError(f"night {before.id} has ended as {before.state}")
    for name in _FIXED:
        if getattr(before, name) != getattr(after, name):
            raise NightStateError(f"a night's {name} cannot change")
    try:
        _check_words(after)
    except ValueError as exc:
        raise NightStateError(str(exc)) from exc
    if before.state == "running" and after.state == "queued":
        raise NightStateError(f"night {before.id} is running and cannot be queued")
    if after.state == "promoted" and after.version is None:
        raise NightStateError("a promoted night has a version")


def _timed(record: NightRecord) -> NightRecord:
    time = now()
    record = replace(record, updated_at=time)
    if record.state == "running" and record.started_at is None:
        record = replace(record, started_at=time)
    if record.ended and record.finished_at is None:
        record = replace(record, finished_at=time)
    return record
