"""What gateway and worker write down beside episodes and priors.

Owns the outcomes of answering with the rows of priors, the traces of requests, since when a schedule is
followed, and where the state of a data folder is. Nights are
`memory/night.py`'s, labels of priors `memory/registry.py`'s: they ask the same database.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

from sqlalchemy import delete, func, insert, null, select, update

from config.settings import Settings
from memory.database import Database, sqlite_url
from memory.episode import now
from memory.free_space import UNLIMITED, FreeSpace
from memory.schema import outcomes, schedules, traces
from memory.takeover import take_over

Source = Literal["night", "day"]

FILE = "state.db"


class State(Database):
    """The state of one data folder, or of all gateways and workers that share a PostgreSQL database."""

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Return the state that the settings name, with what earlier builds left in the data folder.

        Raises:
            StateUnavailableError, NewerStateError, NoRoomError: as of `Database`.
        """
        if settings.state_url:
            opened = cls(settings.state_url)
        else:
            room = FreeSpace(settings.data_dir, settings.min_free_mib)
            opened = cls.in_folder(settings.data_dir, room)
        try:
            take_over(opened, settings.data_dir, settings.trace_limit)
        except BaseException:
            opened.close()
            raise
        return opened

    @classmethod
    def in_folder(cls, folder: Path, room: FreeSpace = UNLIMITED) -> Self:
        """Return the SQLite state in a folder; both are made when they are not there."""
        folder.mkdir(parents=True, exist_ok=True)
        return cls(sqlite_url(folder / FILE), room)

    def add_outcomes(
        self, space: str, tenant: str, row: str, observed: Iterable[tuple[str, float]], source: Source
    ) -> int:
        """Note how prompts were answered with a row of a prior, against how they would be without it.

        A prompt counts once per source: what was noted of it first stays.

        Args:
            space: Id of the latent space.
            tenant: Whose prompts they are.
            row: Id of the row.
            observed: Digest of each prompt, and the difference of its outcomes in [-1, 1].
            source: Who has observed it.

        Returns:
            How many are new.

        Raises:
            ValueError: a difference outside of [-1, 1], or another source.
            NoRoomError: the disk is too full.
            StateUnavailableError: the database does not answer.
        """
        if source not in get_args(Source):
            raise ValueError(f"source is {source!r}, expected one of {', '.join(get_args(Source))}")
        wanted: dict[str, float] = {}
        for prompt, difference in observed:
            if not -1.0 <= difference <= 1.0:  # nor NaN
                raise ValueError(f"the difference of prompt {prompt} is {difference}, expected -1 to 1")
            wanted.setdefault(prompt, float(difference))
        if not wanted:
            return 0
        self.room.demand("outcomes", reserve=True)
        about = {"space": space, "tenant": tenant, "prior_row": row, "source": source}
        known = select(outcomes.c.prompt).filter_by(**about)
        with self.write() as connection:
            for prompt in connection.scalars(known):
                wanted.pop(prompt, None)
            new = [
                about | {"prompt": prompt, "difference": difference, "observed_at": now()}
                for prompt, difference in wanted.items()
            ]
            if new:
                connection.execute(insert(outcomes), new)
        return len(new)

    def count_outcomes(self, space: str, tenant: str) -> int:
        """Return how many outcomes were noted: whoever knows as many knows them all.

        Raises:
            StateUnavailableError: the database does not answer.
        """
        # Not the last number: of writers at once the later one may be done first.
        query = select(func.count()).select_from(outcomes).filter_by(space=space, tenant=tenant)
        with self.read() as connection:
            return connection.scalar(query) or 0

    def follow(self, space: str, cron: str, moment: datetime) -> datetime:
        """Return since when the schedule of a space is followed; from `moment` on when it is another one.

        A beginning that lies after `moment` was written by a clock that was ahead, and begins anew.

        Raises:
            StateUnavailableError, NoRoomError: the state cannot be written.
        """
        with self.write() as connection:
            known = connection.execute(select(schedules).filter_by(space=space)).one_or_none()
            if known is None:
                connection.execute(insert(schedules).values(space=space, cron=cron, since=moment))
            elif known.cron == cron and known.since <= moment:
                return cast("datetime", known.since)
            else:
                changed = update(schedules).filter_by(space=space).values(cron=cron, since=moment)
                connection.execute(changed)
        return moment

    def write_traces(
        self,
        new: Iterable[tuple[str, dict[str, Any], bytes | None]],
        changes: Mapping[str, dict[str, Any]],
        keep: int,
    ) -> None:
        """Write traces of requests, change fields of others, and delete the oldest: all of it or nothing.

        Args:
            new: Id, JSON values and latent of each new trace.
            changes: New fields of traces that were written before; of others nothing comes.
            keep: Most traces that stay.

        Raises:
            NoRoomError: the disk is too full.
            StateUnavailableError: the database does not answer.
        """
        self.room.demand("traces")
        rows = [{"id": name, "content": content, "latent": latent} for name, content, latent in new]
        with self.write() as connection:
            if rows:
                connection.execute(insert(traces), rows)
            for name, change in changes.items():
                content = connection.scalar(select(traces.c.content).filter_by(id=name))
                if content is not None:
                    changed = update(traces).filter_by(id=name).values(content=content | change)
                    connection.execute(changed)
            last = select(func.max(traces.c.number)).scalar_subquery()
            connection.execute(delete(traces).where(traces.c.number <= last - keep))

    def trace(self, trace_id: str, *, latent: bool) -> tuple[dict[str, Any], bytes | None] | None:
        """Return a trace's JSON values, with its latent on request; None when there is none of that id.

        Raises:
            StateUnavailableError: the database does not answer.
        """
        columns = (traces.c.content, traces.c.latent if latent else null())
        with self.read() as connection:
            row = connection.execute(select(*columns).filter_by(id=trace_id)).one_or_none()
        return None if row is None else (row[0], row[1])

    def outcomes(self, space: str, tenant: str) -> dict[str, list[float]]:
        """Return the differences that were noted of each row, in order of observation.

        Raises:
            StateUnavailableError: the database does not answer.
        """
        differences: defaultdict[str, list[float]] = defaultdict(list)
        query = (
            select(outcomes.c.prior_row, outcomes.c.difference)
            .filter_by(space=space, tenant=tenant)
            .order_by(outcomes.c.number)
        )
        with self.read() as connection:
            for row, difference in connection.execute(query):
                differences[row].append(difference)
        return dict(differences)
