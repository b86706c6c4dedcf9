"""How long a request has waited for its engine.

Owns the clock of a request, which travels in its context, and which engines start and stop. Knows nothing of
what they do meanwhile, or of what becomes of the time.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class EngineTime:
    """Seconds during which at least one call of the engine was under way; calls may overlap."""

    def __init__(self) -> None:
        self._seconds, self._running, self._since = 0.0, 0, 0.0
        self.used = False
        """Whether there was a call at all."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time that this lasts, once, however many do."""
        self.used = True
        if self._running == 0:
            self._since = time.monotonic()
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            if self._running == 0:
                self._seconds += time.monotonic() - self._since

    @property
    def seconds(self) -> float:
        """What has been counted until now."""
        return self._seconds + (time.monotonic() - self._since if self._running else 0.0)


engine_time: ContextVar[EngineTime | None] = ContextVar("engine_time", default=None)
"""The clock of the request being served; None: nobody asks for it."""


@contextmanager
def in_engine() -> Iterator[None]:
    """Count the time that this lasts for the request being served."""
    clock = engine_time.get()
    if clock is None:
        yield
        return
    with clock.running():
        yield
