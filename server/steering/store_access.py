"""The episode store, as requests ask it: in threads of their own, and never waited for longer than a limit.

Owns the threads, the limit and what happens after failures in a row: a store that hangs takes no thread that
others need, and is left alone for a while. A wait for one of the threads is our own load and no failure of
the store. Knows nothing of what is asked.
"""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from memory.episode import StoreUnavailableError
from memory.store import EpisodeStore
from server.steering.breaker import Breaker, CircuitOpenError, UndecidedError

T = TypeVar("T")

THREADS = 4
"""Calls at a time; others wait for a free thread within their own limit."""
FAILURES = 3
"""Failed calls in a row after which none is made for a while."""
PAUSE_S = 10.0
"""As long as a call of a server's may hang in its thread."""


class _NoThreadError(UndecidedError):
    """The limit was over while the call waited for a thread, or soon after."""


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
        self._calls: set[Future[Any]] = set()

    async def call(self, work: Callable[[EpisodeStore], T], *, timeout_s: float | None = None) -> T:
        """Return what `work` returns of the store, in a thread.

        Args:
            timeout_s: Longest wait; None: that of this access.

        Raises:
            StoreUnavailableError: it failed, took too long, found no thread in time, or the store failed the
                last times. A call that took too long goes on in its thread, and nobody hears of it; one that
                found no thread is never made.
        """
        limit = self._timeout_s if timeout_s is None else timeout_s
        try:
            with self._breaker.call():
                return await self._result(work, limit)
        except TimeoutError as error:
            raise StoreUnavailableError(f"no answer of the store within {limit:g} s") from error
        except _NoThreadError as error:
            raise StoreUnavailableError(f"no thread to ask the store within {limit:g} s") from error
        except CircuitOpenError as error:
            raise StoreUnavailableError(f"the store did not answer the last times; {error}") from error

    async def _result(self, work: Callable[[EpisodeStore], T], limit: float) -> T:
        """Return the work's result.

        Raises:
            TimeoutError: it had the whole limit in a thread, and has not ended.
            _NoThreadError: it had less, or was never begun.
        """
        waits = len(self._calls) >= THREADS
        context = contextvars.copy_context()  # log records are named after their request
        call = self._threads.submit(context.run, work, self._store)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        told = asyncio.wrap_future(call)
        try:
            await asyncio.wait({told}, timeout=limit)
        finally:
            told.cancel()
        if call.cancel():
            raise _NoThreadError
        if call.done():  # a loop that was held up hears of it only after the limit
            return call.result()
        raise _NoThreadError if waits else TimeoutError

    def close(self) -> None:
        """Take no more calls; those that run end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)
