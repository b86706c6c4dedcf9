"""The episode store, as requests ask it: in threads of their own, and never waited for longer than a limit.

Owns the threads, the limit and what happens after failures in a row: a store that hangs takes no thread that
others need, and is left alone for a while. Knows nothing of what is asked.
"""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from memory.episode import StoreUnavailableError
from memory.store import EpisodeStore
from server.steering.breaker import Breaker, CircuitOpenError

T = TypeVar("T")

THREADS = 4
"""Calls at a time; others wait for a free thread within their own limit."""
FAILURES = 3
"""Failed calls in a row after which none is made for a while."""
PAUSE_S = 10.0
"""As long as a call of a server's may hang in its thread."""


class StoreAccess:
    """Asks a store.

    Args:
        store: What is asked.
        timeout_s: Longest wait for one call, that for a thread included.
        breaker: None: one of the module's constants.
    """

    def __init__(self, store: EpisodeStore, *, timeout_s: float, breaker: Breaker | None = None) -> None:
        self._store, self._timeout_s = store, timeout_s
        self._breaker = breaker or Breaker(failures=FAILURES, pause_s=PAUSE_S)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="store")

    async def call(self, work: Callable[[EpisodeStore], T], *, timeout_s: float | None = None) -> T:
        """Return what `work` returns of the store, in a thread.

        Args:
            timeout_s: Longest wait; None: that of this access.

        Raises:
            StoreUnavailableError: it failed, took too long, or did so the last times. A call that took too
                long goes on in its thread, and nobody hears of it.
        """
        limit = self._timeout_s if timeout_s is None else timeout_s
        context = contextvars.copy_context()  # log records are named after their request
        loop = asyncio.get_running_loop()
        try:
            with self._breaker.call():
                async with asyncio.timeout(limit):
                    return await loop.run_in_executor(self._threads, context.run, work, self._store)
        except TimeoutError as error:
            raise StoreUnavailableError(f"no answer of the store within {limit:g} s") from error
        except CircuitOpenError as error:
            raise StoreUnavailableError(f"the store did not answer the last times; {error}") from error

    def close(self) -> None:
        """Take no more calls; those that run end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)
