"""The record of each night, from the request for it to its end.

Owns the states a night goes through and the files `root/<id>.json`. Knows nothing of what happens
in a night (`worker/`) or of who asks for one.
"""

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

from memory.atomic import locked, write_json
from memory.episode import LatentMemoryError, new_id, now

logger = logging.getLogger(__name__)

Trigger = Literal["api", "cli", "schedule", "episodes"]
State = Literal["queued", "running", "promoted", "refused", "skipped", "failed"]
Phase = Literal["snapshot", "load", "train", "gate", "publish"]

ENDED: frozenset[State] = frozenset({"promoted", "refused", "skipped", "failed"})
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
    gate: dict[str, Any] | None = None
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

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "NightRecord":
        """Return the record that `to_json` took apart.

        Raises:
            ValueError, TypeError, AttributeError: it is none.
        """
        known = {name: value for name, value in values.items() if name in _NAMES}
        for name in _TIMES:
            if known.get(name) is not None:
                known[name] = datetime.fromisoformat(known[name])
        record = cls(**known)
        times = [getattr(record, name) for name in _TIMES]
        if not (record.created_at and record.updated_at) or any(time and not time.tzinfo for time in times):
            raise ValueError("times that are missing or of no time zone")
        _check_words(record)
        return record


_NAMES = frozenset(f.name for f in fields(NightRecord))
_TIMES = ("created_at", "updated_at", "started_at", "finished_at", "scheduled_for")


def _check_words(record: NightRecord) -> None:
    for name, words in (("state", State), ("phase", Phase), ("trigger", Trigger)):
        if getattr(record, name) not in get_args(words):
            raise ValueError(f"{getattr(record, name)!r} is no {name}")


class NightLog:
    """All nights under one folder. Gateway, worker and command line may use it at once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._spoilt: set[Path] = set()
        """Files that were complained of."""

    def create(self, space: str, trigger: Trigger, scheduled_for: datetime | None = None) -> NightRecord:
        """Write and return a queued night, the only one of its space that has not ended.

        Raises:
            NightRunningError: another one is queued or running, or was started for the same scheduled time.
        """
        record = NightRecord(new_id(), space, trigger, scheduled_for=scheduled_for)
        if trigger not in get_args(Trigger):
            raise NightStateError(f"{trigger!r} is no trigger")
        with self._locked():
            for other in self._records():
                same_time = scheduled_for is not None and other.scheduled_for == scheduled_for
                if other.space == space and (same_time or not other.ended):
                    raise NightRunningError(other)
            self._write(record)
        return record

    def get(self, night_id: str) -> NightRecord | None:
        """Return one night, None when there is none of that id.

        Raises:
            NightError: its file cannot be read.
        """
        if not _ID.fullmatch(night_id):
            return None
        path = self._path(night_id)
        try:
            record = NightRecord.from_json(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, AttributeError) as exc:
            raise NightError(f"{path} cannot be read: {exc}") from exc
        if record.id != night_id:
            raise NightError(f"{path} is the record of night {record.id!r}")
        return record

    def update(self, record: NightRecord) -> NightRecord:
        """Write a changed record and return it as written; an unchanged one is a sign of life.

        `updated_at` becomes now, and so do `started_at` of a night that runs and `finished_at` of one
        that ends, unless the record says when.

        Raises:
            UnknownNightError: there is no night of that id.
            NightStateError: it has ended, or the change is none that a night can make.
        """
        with self._locked():
            before = self.get(record.id)
            if before is None:
                raise UnknownNightError(f"there is no night {record.id!r}")
            _check_change(before, record)
            written = _timed(record)
            self._write(written)
        return written

    def list(self) -> list[NightRecord]:
        """Return all nights, newest first; files that cannot be read are left out."""
        return sorted(self._records(), key=lambda record: (record.created_at, record.id), reverse=True)

    def running(self, space: str) -> NightRecord | None:
        """Return the night of the space that is queued or running."""
        open_nights = [r for r in self._records() if r.space == space and not r.ended]
        return min(open_nights, key=lambda record: record.created_at, default=None)

    def _records(self) -> Iterator[NightRecord]:
        for path in self._root.glob("*.json"):
            if _ID.fullmatch(path.stem):
                try:
                    record = self.get(path.stem)
                except NightError as exc:
                    if path not in self._spoilt:  # nights are listed every minute
                        self._spoilt.add(path)
                        logger.warning("%s; it counts as no night", exc)
                    continue
                if record is not None:
                    yield record

    def _path(self, night_id: str) -> Path:
        return self._root / f"{night_id}.json"

    def _locked(self) -> Any:
        self._root.mkdir(parents=True, exist_ok=True)
        return locked(self._root / "lock")

    def _write(self, record: NightRecord) -> None:
        write_json(self._path(record.id), record.to_json())


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
