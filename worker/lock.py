"""The lock of a space: one night at a time.

Owns a file that the operating system unlocks when its holder dies, and the name of the night inside it.
Knows nothing of nights.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from config.settings import Settings
from worker.errors import NightBusyError


def lock_folder(settings: Settings) -> Path:
    """Return the folder of the locks of all spaces."""
    return settings.data_dir / "locks"


@contextmanager
def night_lock(folder: Path, space: str, night_id: str) -> Iterator[None]:
    """Hold the lock of `space` for the night of that id.

    Raises:
        NightBusyError: another process, or another night of this one, holds it; names the holder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / f"{space}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _taken(descriptor):
            raise NightBusyError(os.pread(descriptor, 256, 0).decode(errors="replace"))
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, night_id.encode(), 0)
        yield
    finally:
        os.close(descriptor)  # unlocks


def _taken(descriptor: int) -> bool:
    """Take the lock; a look by `is_locked`, which holds it for an instant, is waited out."""
    for wait_s in (0.02, 0.1, 0.0):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(wait_s)
        else:
            return True
    return False


def is_locked(folder: Path, space: str) -> bool:
    """Return whether a night of `space` is being worked on."""
    try:
        descriptor = os.open(folder / f"{space}.lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
