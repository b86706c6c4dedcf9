"""The tables of the state, and how older ones become these.

Owns names, columns, the version of the schema and the steps between versions. Knows nothing of what is asked
of the tables (`memory/state.py`, `memory/night.py`, `memory/registry.py`) or of where the database is.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    DateTime,
    Dialect,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    insert,
    select,
    update,
)

from memory.episode import TENANT, LatentMemoryError


class NewerStateError(LatentMemoryError):
    """The database was written by a newer release."""


class UtcTime(TypeDecorator[datetime]):
    """A moment: with its zone in Python, in UTC in the database, where SQLite keeps no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the moment in UTC."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the moment with its zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Words(TypeDecorator[str]):
    """Text for people, whatever is in it: what no database takes is replaced, for an error has to be told."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Return the text without zeros and lone surrogates."""
        return None if value is None else value.encode(errors="replace").decode().replace("\0", "\ufffd")


tables = MetaData()

schema_version = Table("schema_version", tables, Column("version", Integer, nullable=False))

nights = Table(
    "nights",
    tables,
    Column("id", Text, primary_key=True),
    Column("space", Text, nullable=False),
    Column("trigger", Text, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    Column("scheduled_for", UtcTime),
    Column("state", Text, nullable=False, index=True),
    Column("phase", Text, nullable=False),
    Column("done", Integer, nullable=False),
    Column("total", Integer, nullable=False),
    Column("message", Words, nullable=False),
    Column("episodes", Integer, nullable=False),
    Column("version", Text),
    Column("parent", Text),
    Column("evidence", JSON(none_as_null=True)),
    Column("error", Words),
    Column("started_at", UtcTime),
    Column("finished_at", UtcTime),
    # How often it was begun since it last got further, and the step of its training that it had reached then.
    Column("attempts", Integer, nullable=False, default=0),
    Column("reached", Integer, nullable=False, default=0),
)
"""Every night, from the request for it to its end: `memory/night.py`."""

leases = Table(
    "leases",
    tables,
    Column("space", Text, primary_key=True),
    Column("night", Text, nullable=False),
    Column("holder", Text, nullable=False),
    Column("beat", Integer, nullable=False),
)
"""Who is working on a night of a space; `beat` grows while that process lives: `worker/lock.py`."""

labels = Table(
    "labels",
    tables,
    Column("space", Text, primary_key=True),
    Column("active", Text),
    Column("pinned", Boolean, nullable=False),
    Column("activated_at", UtcTime),
    Column("last_number", Integer, nullable=False),
)
"""Which prior of a space is active, and the last number that was given to one: `memory/registry.py`."""

schedules = Table(
    "schedules",
    tables,
    Column("space", Text, primary_key=True),
    Column("cron", Text, nullable=False),
    Column("since", UtcTime, nullable=False),
    # What an operator has chosen instead of the settings.
    Column("chosen_cron", Text),
    Column("chosen_episodes", Integer),
)
"""A space's schedule, and from which moment on it is followed: `server/schedule.py`."""

activations = Table(
    "activations",
    tables,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("space", Text, nullable=False, index=True),
    Column("version", Text),
    Column("cause", Text, nullable=False),
    Column("at", UtcTime, nullable=False),
    # Number of the activation that a rollback goes to.
    Column("before", Integer),
    sqlite_autoincrement=True,
)
"""Which priors of a space were active, one after the other: `memory/registry.py`."""

erased_rows = Table(
    "erased_rows",
    tables,
    Column("space", Text, primary_key=True),
    Column("prior_row", Text, primary_key=True),
    Column("active", Boolean, nullable=False),
    Column("erased_at", UtcTime, nullable=False),
)
"""Rows of priors that learned from what was erased, no later night's to carry on: `memory/state.py`."""

traces = Table(
    "traces",
    tables,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("tenant", Text, nullable=False, server_default=TENANT),
    Column("content", JSON, nullable=False),
    Column("latent", LargeBinary),
    # What was asked and answered, for feedback and for the list of recent requests.
    Column("prompt", Text, index=True),
    Column("asked", JSON(none_as_null=True)),
    Column("answer", JSON(none_as_null=True)),
    # What answers said that were graded to measure rows of a prior on it.
    Column("graded", JSON(none_as_null=True)),
    Index("ix_traces_tenant_number", "tenant", "number"),
    sqlite_autoincrement=True,
)
"""What happened to past requests, in the order in which it was written: `server/steering/traces.py`."""

feedback = Table(
    "feedback",
    tables,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("trace", Text, nullable=False, index=True),
    Column("metric_name", Text, nullable=False),
    Column("value", JSON, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    sqlite_autoincrement=True,
)
"""What people said of answers, kept for as long as the trace: `server/feedback.py`."""

outcomes = Table(
    "outcomes",
    tables,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("space", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("prior_row", Text, nullable=False),
    Column("prompt", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("difference", Double, nullable=False),
    Column("observed_at", UtcTime, nullable=False),
    UniqueConstraint("space", "tenant", "prior_row", "prompt", "source"),
    sqlite_autoincrement=True,
)
"""How answering a prompt with a row of a prior compared with answering without: `memory/state.py`."""

api_keys = Table(
    "api_keys",
    tables,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("rate_limit", Text),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime),
    Column("revoked_at", UtcTime),
    Column("hash", Text, nullable=False),
)
"""Who may ask for what: `memory/api_keys.py`."""

experiment_values = Table(
    "experiment_values",
    tables,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("space", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("metric", Text, nullable=False),
    Column("unit", Text, nullable=False),
    Column("arm", Text, nullable=False),
    Column("value", Double, nullable=False),
    Column("noted_at", UtcTime, nullable=False),
    UniqueConstraint("space", "tenant", "metric", "unit"),
    sqlite_autoincrement=True,
)
"""What came of requests that were steered and of such that were held out: `memory/experiment.py`."""

experiment_switches = Table(
    "experiment_switches",
    tables,
    Column("space", Text, primary_key=True),
    Column("tenant", Text, primary_key=True),
    Column("off", Boolean, nullable=False),
    Column("cause", Text, nullable=False),
    Column("message", Words, nullable=False),
    Column("at", UtcTime, nullable=False),
)
"""For whom steering is off, and why: `memory/experiment.py`."""

Step = Callable[[Connection], Any]


def _feedback(connection: Connection) -> None:
    for column in ("prompt TEXT", "asked JSON", "answer JSON"):
        connection.exec_driver_sql(f"ALTER TABLE traces ADD COLUMN {column}")
    connection.exec_driver_sql("CREATE INDEX ix_traces_prompt ON traces (prompt)")
    feedback.create(connection)


def _api_keys(connection: Connection) -> None:
    api_keys.create(connection)


def _operation(connection: Connection) -> None:
    for column in ("chosen_cron TEXT", "chosen_episodes INTEGER"):
        connection.exec_driver_sql(f"ALTER TABLE schedules ADD COLUMN {column}")
    for table in (activations, erased_rows):
        table.create(connection)


def _tenants(connection: Connection) -> None:
    connection.exec_driver_sql(f"ALTER TABLE traces ADD COLUMN tenant TEXT DEFAULT '{TENANT}' NOT NULL")
    connection.exec_driver_sql("CREATE INDEX ix_traces_tenant_number ON traces (tenant, number)")


def _experiments(connection: Connection) -> None:
    for table in (experiment_values, experiment_switches):
        table.create(connection)


def _graded(connection: Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE traces ADD COLUMN graded JSON")


STEPS: tuple[Step, ...] = (_feedback, _api_keys, _operation, _tenants, _experiments, _graded)
"""What makes a schema of version 1, 2, … into the next one. A new database is made from the tables above at
once, so a change of them comes with a step that ends where they do."""

VERSION = 1 + len(STEPS)


def migrate(connection: Connection, steps: Sequence[Step] = STEPS) -> None:
    """Bring the tables up to date, or make them; in one transaction, in which nobody else writes.

    Raises:
        NewerStateError: they are of a newer release.
    """
    latest = 1 + len(steps)
    known = version_of(connection)
    if known == latest:
        return
    if known is None:
        tables.create_all(connection)
        connection.execute(insert(schema_version).values(version=latest))
        return
    if known > latest:
        raise NewerStateError(
            f"the state was written by a newer release (schema {known}, this one knows {latest}): "
            "install that release again, or give this one a data folder of its own"
        )
    for step in steps[known - 1 :]:
        step(connection)
    connection.execute(update(schema_version).values(version=latest))


def version_of(connection: Connection) -> int | None:
    """Return the version of the schema, None where there are no tables."""
    if not connection.dialect.has_table(connection, schema_version.name):
        return None
    version: int | None = connection.scalar(select(schema_version.c.version))
    return version
