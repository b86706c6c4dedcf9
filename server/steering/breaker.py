"""A circuit breaker: whoever does not answer is left alone for a while.

Owns the states and what moves between them. Knows nothing of what is called.

    closed ──(N failures in a row)──> open ──(the pause is over)──> half-open
       ^                                ^────────(the probe failed)────┤
       └───────────────────────────────────────(the probe succeeded)───┘
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class CircuitOpenError(Exception):
    """The call was not made: the last ones failed."""


class UndecidedError(Exception):
    """Left a call that says nothing of whom it was to ask."""


class Breaker:
    """Lets calls through until several in a row have failed.

    Args:
        failures: Failures in a row that open it.
        pause_s: How long it stays open before one call may probe.
        clock: Seconds that only grow.
    """

    def __init__(self, *, failures: int, pause_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._pause_s, self._clock = failures, pause_s, clock
        self._failures = 0
        self._open_until: float | None = None
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether it keeps calls back, but for the one that probes."""
        return self._open_until is not None

    @contextmanager
    def call(self) -> Iterator[None]:
        """Hold one call. An `Exception` in it is a failure; `UndecidedError` and cancelling say nothing.

        A probe that ends in `UndecidedError` leaves it open for one more pause.

        Raises:
            CircuitOpenError: it is open, or another call is probing.
        """
        probes = self._open_until is not None
        if self._open_until is not None:
            left = self._open_until - self._clock()
            if left > 0 or self._probing:
                raise CircuitOpenError(f"next try in {left:.0f} s" if left > 0 else "being tried right now")
            self._probing = True
        try:
            yield
        except UndecidedError:
            if probes:
                self._open_until = self._clock() + self._pause_s
            raise
        except Exception:
            self._failures += 1
            if self._failures >= self._limit:
                self._open_until = self._clock() + self._pause_s
            raise
        else:
            self._failures, self._open_until = 0, None
        finally:
            if probes:
                self._probing = False
