"""A real PostgreSQL server for tests: Debian's package, in a folder of its own, on a Unix socket."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg


def postgres_programs() -> Path | None:
    """Return the folder of `initdb` and `postgres`, None where they are not installed."""
    on_path = shutil.which("initdb")
    found = [Path(on_path)] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].resolve().parent if found else None


class PostgresServer:
    """A server that nobody reaches but over the socket in its folder; it keeps nothing."""

    def __init__(self, programs: Path) -> None:
        # Not pytest's folder: nobody but its owner may enter that, and a socket's path has to be short.
        self._folder = Path(tempfile.mkdtemp(prefix="latentevolve-pg-"))
        user = _unprivileged()
        if user is not None:
            shutil.chown(self._folder, user.pw_uid, user.pw_gid)
        who = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        data, sockets = str(self._folder / "data"), str(self._folder)
        setup = [programs / "initdb", "-D", data, "-U", "tests", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(setup, check=True, capture_output=True, cwd=self._folder, **who)  # type: ignore[call-overload]
        options = ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=100"]
        self._process = subprocess.Popen(  # type: ignore[call-overload]
            [programs / "postgres", "-D", data, "-k", sockets, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._folder,
            **who,
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                self._connect().close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise
                time.sleep(0.05)

    def database(self) -> str:
        """Return the URL of a database that is empty again."""
        with self._connect() as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
        return f"postgresql+psycopg://tests@/postgres?host={self._folder}"

    def stop(self) -> None:
        """End the server and delete what it kept."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait()
        shutil.rmtree(self._folder)

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(f"host={self._folder} user=tests dbname=postgres", autocommit=True)


def _unprivileged() -> pwd.struct_passwd | None:
    """Return the user to run the server as, for root may not; None: whoever runs the tests."""
    if os.getuid() != 0:
        return None
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    return names.get("postgres") or names["nobody"]
