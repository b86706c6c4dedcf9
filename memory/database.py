"""The SQL database of the state: SQLite in the data folder, or PostgreSQL by URL.

Owns connections, transactions, the time that they wait for one another, and the translation of what a
database raises. A transaction that writes is alone, on either database, so what it has read stays true until
it ends. Knows nothing of what is kept.

DatabaseError
└── StateUnavailableError   the database does not answer, is locked for too long, or cannot be used
"""

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from memory.episode import LatentMemoryError
from memory.free_space import UNLIMITED, FreeSpace, NoRoomError
from memory.schema import VERSION, migrate, version_of

WAIT_S = 5.0
"""How long a connection, or the end of somebody else's writing, is waited for."""
STATEMENT_S = 30
"""How long PostgreSQL may take for one statement, and wait for the next one of a transaction."""

LOST = {"tcp_user_timeout": 10_000, "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}
"""How soon libpq gives up a host that is gone, in ms and s: it cannot keep the limits above."""

IDLE_S = 3
"""How long a transaction that writes on PostgreSQL may do nothing: less than others wait for its end, so that
a process which was stopped in the midst of one holds up nobody."""

_LOCK = 0x1A7E27E0
"""Name of the advisory lock that a writing transaction holds on PostgreSQL."""
_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
_DISK_FULL = "53100"


class StateUnavailableError(LatentMemoryError):
    """The database does not answer, is locked for too long, or cannot be used."""


class Database:
    """Connections to one database. Threads may share it; a process that was forked opens its own.

    Any number of processes may use one database at once.
    """

    def __init__(self, url: str | URL, room: FreeSpace = UNLIMITED) -> None:
        """Connect, and make the tables or bring them up to date.

        Args:
            url: `sqlite:///path`, or `postgresql+psycopg://user@host/name`.
            room: Of the disk under an SQLite file.

        Raises:
            StateUnavailableError: it does not answer, or cannot be used.
            NewerStateError: it was written by a newer release.
            NoRoomError: the disk is full.
        """
        self.room = room
        try:
            self._url = make_url(url)
        except ArgumentError as error:
            raise StateUnavailableError("the URL of the state is none; see LATENTEVOLVE_STATE_URL") from error
        self._engine = _engine(self._url)
        self._closed = False
        event.listen(self._engine, "checkin", self._given_back)
        try:
            with self.read() as connection:  # which waits for nobody
                current = version_of(connection) == VERSION
            if not current:
                with self.write() as connection:
                    migrate(connection)
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        """The database, without its password."""
        return self._url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Close all connections; those that are in use as soon as they are given back."""
        self._closed = True
        self._engine.dispose()

    def _given_back(self, connection: Any, _: object) -> None:
        # The pool that it comes from is gone, so nobody else would close it.
        if self._closed and connection is not None:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Give a transaction that only reads.

        Raises:
            StateUnavailableError: the database does not answer.
        """
        with self._translated(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Give a transaction that is the only one that writes; it is kept when the block ends without error.

        Raises:
            StateUnavailableError: the database does not answer, or others have written for too long.
            NoRoomError: the disk is full; nothing was written.
        """
        with (
            self._translated(),
            self._engine.connect().execution_options(alone=True) as connection,
            connection.begin(),
        ):
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = '{IDLE_S}s'")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
            yield connection

    def scrub(self) -> None:
        """Have an SQLite file and its log hold no more what was deleted; PostgreSQL does that by its vacuum.

        While others read, the log waits for a later call, or for the last one that closes the file.

        Raises:
            StateUnavailableError: the database does not answer.
        """
        if self._url.get_backend_name() != "sqlite":
            return
        with self._translated():
            connection = self._engine.raw_connection()
            try:
                connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            finally:
                connection.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error) as error:
            cause = getattr(error, "orig", None) or error
            full = getattr(cause, "sqlite_errorcode", None) in _NO_ROOM
            if full or getattr(cause, "sqlstate", None) == _DISK_FULL:
                raise NoRoomError(
                    f"the disk of {self.name} is full; delete something there, nothing was written"
                ) from error
            raise StateUnavailableError(f"{self.name} cannot be used: {str(cause).strip()}") from error


def sqlite_url(path: Path) -> URL:
    """Return the URL of an SQLite file."""
    return URL.create("sqlite", database=str(path))


def _engine(url: URL) -> Engine:
    to_json = partial(json.dumps, ensure_ascii=True, allow_nan=False)
    try:
        if url.get_backend_name() == "sqlite":
            engine = create_engine(
                url, pool_timeout=WAIT_S, connect_args={"timeout": WAIT_S}, json_serializer=to_json
            )
            event.listen(engine, "connect", _set_up_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        limits = {
            "lock_timeout": f"{WAIT_S:g}s",
            "statement_timeout": f"{STATEMENT_S}s",
            "idle_in_transaction_session_timeout": f"{STATEMENT_S}s",
        }
        return create_engine(
            url,
            pool_timeout=WAIT_S,
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": int(WAIT_S),
                **LOST,
                "options": " ".join(f"-c {name}={value}" for name, value in limits.items()),
            },
            json_serializer=to_json,
        )
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise StateUnavailableError(
            f"there is no driver for {url.drivername}: use postgresql+psycopg:// and "
            "`pip install psycopg[binary]`"
        ) from error


def _set_up_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions begin where `_begin_sqlite` says
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            # Other processes that open a new file at the same moment are not waited for by SQLite itself.
            connection.execute("PRAGMA journal_mode=WAL").close()
            break
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    # What was deleted is overwritten.
    connection.execute("PRAGMA secure_delete=ON").close()
    # What was acknowledged survives a power failure, too.
    connection.execute("PRAGMA synchronous=FULL").close()


def _begin_sqlite(connection: Connection) -> None:
    alone = connection.get_execution_options().get("alone", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if alone else "BEGIN")
