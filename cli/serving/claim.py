"""What only one `serve` may hold: a data directory and a port.

Owns the two checks that run before anything heavy starts.
"""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from cli.failure import CommandError


@contextlib.contextmanager
def claim(data_dir: Path, url: str) -> Iterator[int]:
    """Hold `data_dir` for this process and yield the lock's file descriptor.

    Raises:
        CommandError: another serve holds it, or the folder cannot be made.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = os.open(data_dir / "serve.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise CommandError(
            f"cannot write to data directory {data_dir}: {error.strerror}", "choose another with --data-dir"
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(
                f"data directory {data_dir} is already being served{_holder(lock)}",
                "stop that one (if it was killed just now, wait a moment), or choose another --data-dir",
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps({"pid": os.getpid(), "url": url}).encode(), 0)
        yield lock
    finally:
        os.close(lock)


def _holder(lock: int) -> str:
    try:
        note = json.loads(os.pread(lock, 4096, 0))
        return f" by process {note['pid']} at {note['url']}"
    except (ValueError, KeyError, TypeError):
        return ""  # it has the lock but has not written its note yet


def check_port(host: str, port: int) -> None:
    """Raise CommandError unless `host`:`port` can be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the gateway itself does
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CommandError(
                f"cannot listen on {host}:{port}: {error.strerror or error}",
                "stop what listens there, or choose another with --port",
            ) from error


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nothing listens on."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
