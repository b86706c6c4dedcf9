"""The record of a night, as the worker keeps it up to date.

Owns when it is written: at once when the phase changes, at most once a second for progress, and every
few seconds as a sign of life while nothing moves. Knows nothing of what a night does.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from memory.episode import LatentMemoryError
from memory.night import NightLog, NightRecord, NightStateError, UnknownNightError
from worker.errors import NightOverruledError

logger = logging.getLogger(__name__)

PROGRESS_EVERY_S = 1.0
HEARTBEAT_S = 10.0


class Journal:
    """Writes one night's record. Threads may share it."""

    def __init__(self, log: NightLog, record: NightRecord) -> None:
        self._log = log
        self._record = record
        self._lock = threading.Lock()
        self._written_at = 0.0
        self._overruled = False

    @property
    def record(self) -> NightRecord:
        """The record as it was last written."""
        return self._record

    def change(self, **changes: Any) -> None:
        """Write changed fields now.

        Raises:
            NightOverruledError: somebody else has ended or taken this night.
        """
        with self._lock:
            self._check()
            self._write(**changes)

    def progress(self, done: int, total: int, message: str) -> None:
        """Note how far the phase is; written when the last writing is a second ago, or at the end.

        What cannot be written is logged: a full disk, say, is no reason to end a night that gets on.

        Raises:
            NightOverruledError: somebody else has ended or taken this night.
        """
        with self._lock:
            self._check()
            due = time.monotonic() - self._written_at >= PROGRESS_EVERY_S
            if due or done >= total:
                self._try_to_write(done=done, total=total, message=message)

    def look(self) -> None:
        """See whether somebody else has ended this night; a state that cannot be read says nothing.

        Raises:
            NightOverruledError: somebody else has ended or taken this night.
        """
        with self._lock:
            if not self._record.ended:
                try:
                    known = self._log.get(self._record.id)
                except LatentMemoryError as error:
                    logger.warning("night %s cannot be looked at: %s", self._record.id, error)
                else:
                    self._overruled = self._overruled or known is None or known.ended
            self._check()

    def overrule(self) -> None:
        """Write nothing any more: another worker has taken this night. May be called from any thread."""
        self._overruled = True

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Give signs of life from a thread of its own: loading a model or a slow step moves nothing."""
        stop = threading.Event()
        thread = threading.Thread(target=self._beat, args=(stop,), name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(HEARTBEAT_S):
            with self._lock:
                if time.monotonic() - self._written_at < HEARTBEAT_S or self._record.ended:
                    continue
                if self._overruled:
                    return
                try:
                    self._try_to_write()
                except NightOverruledError:
                    return  # the night itself learns of it at its next progress

    def _check(self) -> None:
        if self._overruled:
            raise NightOverruledError(f"night {self._record.id} was ended or taken by somebody else")

    def _try_to_write(self, **changes: Any) -> None:
        try:
            self._write(**changes)
        except (LatentMemoryError, OSError) as error:
            self._written_at = time.monotonic()
            logger.warning("no sign of life of night %s: %s", self._record.id, error)

    def _write(self, **changes: Any) -> None:
        try:
            self._record = self._log.update(replace(self._record, **changes))
        except (NightStateError, UnknownNightError) as error:
            self._overruled = True
            raise NightOverruledError(str(error)) from error
        self._written_at = time.monotonic()
