"""The lock of a space: one night at a time, whatever the host of its worker.

Owns the row that says who works on a night, its beat, and when a holder is gone: a process of this machine
that does not live any more, or one elsewhere whose beat stands still. Clocks are not compared. Knows nothing
of nights.
"""

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import delete, insert, select, update

from memory.episode import LatentMemoryError
from memory.schema import leases
from memory.state import State
from worker.errors import NightBusyError

logger = logging.getLogger(__name__)

BEAT_S = 5.0
GONE_AFTER_S = 30.0
"""A holder on another machine whose beat stands still for so long is gone."""


class _Lease(NamedTuple):
    """What the row of a space says."""

    night: str
    holder: str
    beat: int


@contextmanager
def night_lock(state: State, space: str, night_id: str, lost: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of `space` for the night of that id.

    Whether a holder on another machine lives shows after a while, which is waited for.

    Args:
        state: Where the lock is.
        space: Id of the space.
        night_id: Of the night.
        lost: Called from another thread when somebody else has taken the lock meanwhile, because this process
            gave no sign of life for long.

    Raises:
        NightBusyError: another process, or another night of this one, holds it; names the holder's night.
        StateUnavailableError, NoRoomError: the state cannot be written.
    """
    holder = f"{_myself()}/{uuid.uuid4()}"
    _take(state, space, night_id, holder)
    stop = threading.Event()
    beating = threading.Thread(target=_beat, args=(state, holder, stop, lost), name="lock", daemon=True)
    beating.start()
    try:
        yield
    finally:
        stop.set()
        beating.join()
        try:
            with state.write() as connection:
                connection.execute(delete(leases).filter_by(holder=holder))
        except LatentMemoryError as error:  # others see that it is gone
            logger.warning("the lock of space %s is not given back: %s", space, error)


def is_held(state: State, space: str) -> bool:
    """Return whether a process of this machine is working on a night of `space`."""
    lease = _look(state, space)
    return lease is not None and _lives(lease.holder) is True


def _take(state: State, space: str, night_id: str, holder: str) -> None:
    seen, since = None, time.monotonic()
    while True:
        lease = _look(state, space)
        if lease is not None:
            lives = _lives(lease.holder)
            if lives or (lives is None and seen is not None and lease != seen):
                raise NightBusyError(lease.night)
            if lives is None and time.monotonic() - since < GONE_AFTER_S:
                seen = lease
                time.sleep(BEAT_S / 10)
                continue
        with state.write() as connection:
            if lease is not None:
                same = delete(leases).filter_by(space=space, holder=lease.holder, beat=lease.beat)
                connection.execute(same)
            if connection.scalar(select(leases.c.holder).filter_by(space=space)) is None:
                mine = {"space": space, "night": night_id, "holder": holder, "beat": 0}
                connection.execute(insert(leases).values(mine))
                return


def _look(state: State, space: str) -> _Lease | None:
    query = select(leases.c.night, leases.c.holder, leases.c.beat).filter_by(space=space)
    with state.read() as connection:
        lease = connection.execute(query).one_or_none()
    return None if lease is None else _Lease(*lease)


def _beat(state: State, holder: str, stop: threading.Event, lost: Callable[[], None]) -> None:
    beat = update(leases).filter_by(holder=holder).values(beat=leases.c.beat + 1)
    while not stop.wait(BEAT_S):
        try:
            with state.write() as connection:
                held = connection.execute(beat).rowcount
        except LatentMemoryError as error:
            logger.warning("no beat: %s", error)
            continue
        if not held:
            lost()
            return


def _myself() -> str:
    """Name this process: the machine's boot, the space of its process ids, its id and when it began."""
    return f"{_machine()}/{os.getpid()}/{_began(os.getpid())}"


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # Containers of one machine have process ids of their own.
        return f"{boot}.{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"unknown.{uuid.uuid4()}"


def _began(pid: int) -> str | None:
    """Return when a process began, in ticks since the boot; None when there is none, or it has ended."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else rest[18]


def _lives(holder: str) -> bool | None:
    """Return whether the process of that name lives; None: it is on another machine, who knows."""
    machine, pid, began, _ = holder.split("/")
    if machine != _machine():
        return None
    return _began(int(pid)) == began
