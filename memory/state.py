"""What gateway and worker write down beside episodes and priors.

Owns the outcomes of answering with the rows of priors, the traces of requests and what people said of their
answers, the schedule that an operator has chosen, since when one is followed, which rows of priors learned
from what was erased, and where the state of a data folder is. Nights are
`memory/night.py`'s, labels of priors `memory/registry.py`'s: they ask the same database.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

from sqlalchemy import ColumnElement, delete, func, insert, null, select, update

from config.settings import Settings
from memory.database import Database, sqlite_url
from memory.episode import TENANT, now
from memory.evidence import Evidence
from memory.free_space import UNLIMITED, FreeSpace
from memory.prior import Prior, standings
from memory.schema import erased_rows, feedback, outcomes, schedules, traces
from memory.takeover import take_over
from memory.tenants import parted

Source = Literal["night", "day", "people"]
"""Who has observed an outcome; people say what one of the day's can be at most."""

FILE = "state.db"

_AT_ONCE = 1000
"""Ids in one statement: databases take only so many."""

_EXCHANGE = (traces.c.prompt, traces.c.asked, traces.c.answer, traces.c.graded)
_NOTHING = {"prompt": None, "asked": None, "answer": None, "graded": None}


@dataclass(frozen=True)
class NewTrace:
    """A trace as it is written."""

    id: str
    content: dict[str, Any]
    latent: bytes | None = None
    prompt: str | None = None
    """Id of the prompt's episode; None: nothing is kept of what was asked."""
    asked: dict[str, Any] | None = None
    tenant: str = TENANT
    """Whose request it was."""


@dataclass(frozen=True)
class KeptExchange:
    """What was asked and answered, as far as it is kept, in JSON values."""

    prompt: str | None
    """Id of the prompt's episode."""
    asked: dict[str, Any] | None
    answer: dict[str, Any] | None
    graded: dict[str, Any] | None = None
    """What answers said that were graded, by the row that was measured."""


@dataclass(frozen=True)
class RecentTrace:
    """A trace in a list, with what of its exchange is kept and how people rated the answer last."""

    number: int
    """Grows from trace to trace."""
    content: dict[str, Any]
    exchange: KeptExchange
    rating: float | None


@dataclass(frozen=True)
class Feedback:
    """What somebody said of an answer."""

    id: str
    trace: str
    metric_name: str
    value: bool | float | str
    tags: dict[str, str] = field(default_factory=dict)
    created_at: datetime = field(default_factory=now, compare=False)
    tenant: str = TENANT


@dataclass(frozen=True)
class ChosenSchedule:
    """What an operator has chosen instead of the settings; None: nothing."""

    cron: str | None = None
    """Cron's five fields, or `never`."""
    episodes: int | None = None
    """New episodes that start a night; 0: never."""


@dataclass(frozen=True)
class ErasedRow:
    """A row of priors that learned from what was erased."""

    row: str
    active: bool
    """Whether it was in the active version then."""
    erased_at: datetime
    """When something of it was erased first."""


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

        A prompt counts once per source: what was noted of it first stays, of what people say the least.

        Args:
            space: Id of the latent space.
            tenant: Whose prompts they are.
            row: Id of the row.
            observed: Digest of each prompt, and the difference of its outcomes in [-1, 1].
            source: Who has observed it.

        Returns:
            How many are new, or less than what people have said.

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
        known = (
            select(outcomes.c.number, outcomes.c.prompt, outcomes.c.difference)
            .filter_by(**about)
            .where(outcomes.c.prompt.in_(list(wanted)))
        )
        with self.write() as connection:
            lowered = []
            for number, prompt, difference in connection.execute(known):
                if source == "people" and wanted[prompt] < difference:
                    lowered.append(number)  # noted anew, so that gateways see it
                else:
                    del wanted[prompt]
            if lowered:
                connection.execute(delete(outcomes).where(outcomes.c.number.in_(lowered)))
            new = [
                about | {"prompt": prompt, "difference": difference, "observed_at": now()}
                for prompt, difference in wanted.items()
            ]
            if new:
                connection.execute(insert(outcomes), new)
        return len(new)

    def seen_outcomes(self, space: str, tenant: str, rows: Collection[str] | None = None) -> tuple[int, int]:
        """Return how many outcomes are noted, and the number of the last: whoever knows both knows them all.

        Args:
            space: The space.
            tenant: The tenant.
            rows: The rows that they are of, which is what serving needs; None: any.

        Raises:
            StateUnavailableError: the database does not answer.
        """
        # Not the last number alone: of writers at once the later one may be done first.
        query = select(func.count(), func.coalesce(func.max(outcomes.c.number), 0)).select_from(outcomes)
        query = query.where(*_about(space, tenant, rows))
        with self.read() as connection:
            count, last = connection.execute(query).one()
        return count, last

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

    def chosen_schedule(self, space: str) -> ChosenSchedule:
        """Return what an operator has chosen instead of the settings.

        Raises:
            StateUnavailableError: the database does not answer.
        """
        query = select(schedules.c.chosen_cron, schedules.c.chosen_episodes).filter_by(space=space)
        with self.read() as connection:
            row = connection.execute(query).one_or_none()
        return ChosenSchedule() if row is None else ChosenSchedule(*row)

    def choose_schedule(self, space: str, chosen: ChosenSchedule, moment: datetime) -> None:
        """Keep what an operator has chosen, in the place of what was.

        Raises:
            StateUnavailableError, NoRoomError: the state cannot be written.
        """
        values = {"chosen_cron": chosen.cron, "chosen_episodes": chosen.episodes}
        with self.write() as connection:
            if not connection.execute(update(schedules).filter_by(space=space).values(values)).rowcount:
                nothing_yet = {"space": space, "cron": "never", "since": moment}
                connection.execute(insert(schedules).values(nothing_yet | values))

    def note_erasure(self, space: str, rows: Mapping[str, bool], since: datetime | None = None) -> None:
        """Note rows of priors that learned from what was erased, and whether they are active; once each.

        Those that were first noted `since` are of an erasure that goes on: they count as erased now.

        Raises:
            StateUnavailableError, NoRoomError: the state cannot be written.
        """
        known = select(erased_rows.c.prior_row).filter_by(space=space)
        with self.write() as connection:
            noted = set(connection.scalars(known))
            new = [
                {"space": space, "prior_row": row, "active": active, "erased_at": now()}
                for row, active in rows.items()
                if row not in noted
            ]
            if new:
                connection.execute(insert(erased_rows), new)
            if since is not None:
                mine = erased_rows.c.space == space, erased_rows.c.prior_row.in_(list(rows))
                again = update(erased_rows).where(*mine, erased_rows.c.erased_at >= since)
                connection.execute(again.values(erased_at=now()))

    def erased_rows(self, space: str) -> list[ErasedRow]:
        """Return the rows of priors that learned from what was erased, the first erased first.

        Raises:
            StateUnavailableError: the database does not answer.
        """
        columns = (erased_rows.c.prior_row, erased_rows.c.active, erased_rows.c.erased_at)
        query = select(*columns).filter_by(space=space).order_by(erased_rows.c.erased_at)
        with self.read() as connection:
            return [ErasedRow(*row) for row in connection.execute(query)]

    def write_traces(
        self,
        new: Iterable[NewTrace],
        changes: Mapping[str, dict[str, Any]],
        keep: int,
        answers: Mapping[str, dict[str, Any]] | None = None,
        graded: Mapping[str, dict[str, Any]] | None = None,
    ) -> None:
        """Write traces of requests, change others, and delete the oldest with the feedback: all or nothing.

        Args:
            new: Traces.
            changes: New fields of traces that were written before; of others nothing comes.
            keep: Most traces of a tenant that stay.
            answers: What traces were answered, those that are new included; where nothing of what was asked
                is kept, nothing comes of it.
            graded: What answers said that were graded on the prompts of traces, likewise.

        Raises:
            NoRoomError: the disk is too full.
            StateUnavailableError: the database does not answer.
        """
        self.room.demand("traces")
        rows = [vars(one) for one in new]
        with self.write() as connection:
            if rows:
                connection.execute(insert(traces), rows)
            for name, change in changes.items():
                content = connection.scalar(select(traces.c.content).filter_by(id=name))
                if content is not None:
                    changed = update(traces).filter_by(id=name).values(content=content | change)
                    connection.execute(changed)
            for column, values in (("answer", answers), ("graded", graded)):
                for name, value in (values or {}).items():
                    kept = traces.c.id == name, traces.c.prompt.is_not(None)
                    connection.execute(update(traces).where(*kept).values({column: value}))
            for tenant in {row["tenant"] for row in rows}:
                own = select(traces.c.number).filter_by(tenant=tenant).order_by(traces.c.number.desc())
                first = connection.scalar(own.offset(keep).limit(1))
                if first is None:
                    continue
                old = traces.c.tenant == tenant, traces.c.number <= first
                gone = select(traces.c.id).where(*old)
                connection.execute(delete(feedback).where(feedback.c.trace.in_(gone)))
                connection.execute(delete(traces).where(*old))

    def trace(
        self, trace_id: str, *, latent: bool, tenant: str = TENANT
    ) -> tuple[dict[str, Any], bytes | None] | None:
        """Return a trace's JSON values, with its latent on request; None when the tenant has none of that id.

        Raises:
            StateUnavailableError: the database does not answer.
        """
        columns = (traces.c.content, traces.c.latent if latent else null())
        with self.read() as connection:
            row = connection.execute(select(*columns).filter_by(id=trace_id, tenant=tenant)).one_or_none()
        return None if row is None else (row[0], row[1])

    def recent_traces(
        self, space: str, limit: int, before: int | None = None, tenant: str = TENANT
    ) -> list[RecentTrace]:
        """Return up to `limit` traces of a space and a tenant, newest first; with `before` of lesser numbers.

        Raises:
            StateUnavailableError: the database does not answer.
        """
        query = select(traces.c.number, traces.c.id, traces.c.content, *_EXCHANGE)
        query = query.where(traces.c.tenant == tenant, traces.c.content["space"].as_string() == space)
        if before is not None:
            query = query.where(traces.c.number < before)
        with self.read() as connection:
            rows = connection.execute(query.order_by(traces.c.number.desc()).limit(limit)).all()
            said = (
                select(feedback.c.trace, feedback.c.value)
                .where(feedback.c.metric_name == "rating", feedback.c.trace.in_([row.id for row in rows]))
                .order_by(feedback.c.number)
            )
            ratings = {trace: float(value) for trace, value in connection.execute(said)}  # the last one stays
        return [
            RecentTrace(
                row.number,
                row.content,
                KeptExchange(row.prompt, row.asked, row.answer, row.graded),
                ratings.get(row.id),
            )
            for row in rows
        ]

    def exchange(self, trace_id: str, tenant: str = TENANT) -> KeptExchange | None:
        """Return what a trace was asked and answered; None when the tenant has none of that id.

        Raises:
            StateUnavailableError: the database does not answer.
        """
        with self.read() as connection:
            row = connection.execute(select(*_EXCHANGE).filter_by(id=trace_id, tenant=tenant)).one_or_none()
        return None if row is None else KeptExchange(*row)

    def forget_exchanges(self, prompts: Collection[str] | None, tenant: str = TENANT) -> None:
        """Delete what was asked and answered under these ids of prompts, and what people said of it.

        Args:
            prompts: None: all that the tenant has, and all that was said of its answers.

        Raises:
            NoRoomError: the disk is full.
            StateUnavailableError: the database does not answer.
        """
        own = traces.c.tenant == tenant
        some = None if prompts is None else [*prompts]
        every = (
            [(own,)]
            if some is None
            else [
                (own, traces.c.prompt.in_(some[at : at + _AT_ONCE])) for at in range(0, len(some), _AT_ONCE)
            ]
        )
        with self.write() as connection:
            for meant in every:
                said = feedback.c.trace.in_(select(traces.c.id).where(*meant))
                connection.execute(delete(feedback).where(said))
                connection.execute(update(traces).where(*meant).values(_NOTHING))
        self.scrub()

    def forget_exchange(self, trace_id: str, tenant: str = TENANT) -> None:
        """Delete what was asked and answered in one trace, and what people said of it.

        Raises:
            NoRoomError: the disk is full.
            StateUnavailableError: the database does not answer.
        """
        meant = traces.c.tenant == tenant, traces.c.id == trace_id
        with self.write() as connection:
            said = feedback.c.trace.in_(select(traces.c.id).where(*meant))
            connection.execute(delete(feedback).where(said))
            connection.execute(update(traces).where(*meant).values(_NOTHING))
        self.scrub()

    def forget_exchanges_before(self, moment: datetime) -> None:
        """Delete what was asked and answered before a moment, and what people said of it.

        Raises:
            NoRoomError: the disk is full.
            StateUnavailableError: the database does not answer.
        """
        asked_at = traces.c.content["created_at"].as_string()  # all of one form, in UTC
        old = traces.c.prompt.is_not(None), asked_at < moment.astimezone(UTC).isoformat()
        with self.write() as connection:
            said = feedback.c.trace.in_(select(traces.c.id).where(*old))
            connection.execute(delete(feedback).where(said))
            connection.execute(update(traces).where(*old).values(_NOTHING))
        self.scrub()

    def add_feedback(self, said: Feedback) -> Feedback:
        """Keep what somebody said, and return what is kept under its id: that, or what was there before.

        Raises:
            NoRoomError: the disk is too full.
            StateUnavailableError: the database does not answer.
        """
        self.room.demand("feedback")
        with self.write() as connection:
            name = _feedback_name(said.tenant, said.id)
            known = connection.execute(select(feedback).filter_by(id=name)).one_or_none()
            if known is not None:
                return _feedback_of(known)
            values = {name: value for name, value in vars(said).items() if name != "tenant"}
            connection.execute(insert(feedback).values(values | {"id": name}))
        return said

    def feedback(self, feedback_id: str, tenant: str = TENANT) -> Feedback | None:
        """Return what a tenant has said under an id.

        Raises:
            StateUnavailableError: the database does not answer.
        """
        with self.read() as connection:
            named = select(feedback).filter_by(id=_feedback_name(tenant, feedback_id))
            row = connection.execute(named).one_or_none()
        return None if row is None else _feedback_of(row)

    def feedback_on(self, trace_id: str) -> list[Feedback]:
        """Return what was said of the answer of a trace, oldest first.

        Raises:
            StateUnavailableError: the database does not answer.
        """
        query = select(feedback).filter_by(trace=trace_id).order_by(feedback.c.number)
        with self.read() as connection:
            return [_feedback_of(row) for row in connection.execute(query)]

    def outcomes(
        self, space: str, tenant: str, rows: Collection[str] | None = None
    ) -> dict[str, list[float]]:
        """Return the differences that were noted of each row, in order of observation.

        Args: those of `seen_outcomes`.

        One that the day has measured is no more than people say that it can be.

        Raises:
            StateUnavailableError: the database does not answer.
        """
        found: defaultdict[str, dict[tuple[str, str], float]] = defaultdict(dict)
        bounds: dict[tuple[str, str], float] = {}
        query = (
            select(outcomes.c.prior_row, outcomes.c.prompt, outcomes.c.source, outcomes.c.difference)
            .where(*_about(space, tenant, rows))
            .order_by(outcomes.c.number)
        )
        with self.read() as connection:
            for row, prompt, source, difference in connection.execute(query):
                if source == "people":
                    bounds[row, prompt] = difference
                else:
                    found[row][source, prompt] = difference
        for (row, prompt), most in bounds.items():
            if ("day", prompt) in found[row]:
                found[row]["day", prompt] = min(found[row]["day", prompt], most)
        return {row: list(differences.values()) for row, differences in found.items() if differences}

    def evidence(self, prior: Prior) -> dict[str, Evidence]:
        """Return the evidence about the rows of a version, by their ids.

        Rows that learned from what was erased since are left out: they serve no more, and no later version
        has them.

        Raises:
            StateUnavailableError: the database does not answer.
        """
        erased = {one.row for one in self.erased_rows(prior.space)}
        rows = [row.id for row in prior.rows if row.id not in erased]
        return standings(prior.only(rows), self.outcomes(*parted(prior.space), rows))


def _about(space: str, tenant: str, rows: Collection[str] | None) -> list[ColumnElement[bool]]:
    found = [outcomes.c.space == space, outcomes.c.tenant == tenant]
    return found if rows is None else [*found, outcomes.c.prior_row.in_(list(rows))]


def _feedback_name(tenant: str, feedback_id: str) -> str:
    """Return what a table has as its id: clients choose them, and tenants may choose the same."""
    return feedback_id if tenant == TENANT else f"{tenant}/{feedback_id}"


def _feedback_of(row: Any) -> Feedback:
    tenant, _, name = row.id.rpartition("/")
    return Feedback(
        name, row.trace, row.metric_name, row.value, row.tags, row.created_at, tenant=tenant or TENANT
    )
