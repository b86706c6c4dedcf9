"""The account of one search: tokens, time, and what was computed.

Owns the limits and when they end a search. Knows nothing of what is decoded.
"""

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

from model.engine import Usage
from server.steering.search.result import Stopped

T = TypeVar("T")


class SessionEndedError(Exception):
    """The search ends here; `reason` says why."""

    def __init__(self, reason: Stopped) -> None:
        super().__init__(reason)
        self.reason: Stopped = reason


class Budget:
    """What a search has spent, and what is left.

    Args:
        tokens: Most that may be generated; None: no limit.
        deadline_s: Time from now.
    """

    def __init__(self, tokens: int | None, deadline_s: float) -> None:
        self._tokens, self._deadline = tokens, time.monotonic() + deadline_s
        self._generated = 0
        self.usage = Usage()

    @property
    def left(self) -> int | None:
        """Tokens that may still be generated; None: any number."""
        return None if self._tokens is None else self._tokens - self._generated

    def affordable(self, length: int, wanted: int, *, least: int = 1, multiple: int = 1) -> int:
        """Return how many answers of at most `length` tokens are left, at most `wanted`.

        Raises:
            SessionEndedError: fewer than `least`, in multiples of `multiple`.
        """
        left = self.left
        count = wanted if left is None else min(wanted, left // length)
        count -= count % multiple
        if count < least:
            raise SessionEndedError("budget")
        return count

    def spend(self, read: int, generated: int) -> None:
        """Count prompt tokens that were read and tokens that were generated."""
        self._generated += generated
        self.usage += Usage(read, generated, read + generated)

    def pass_through(self, tokens: int) -> None:
        """Count tokens that went through the model without being generated."""
        self.usage += Usage(forward_tokens=tokens)

    async def in_time(self, work: Awaitable[T]) -> T:
        """Return what `work` gives.

        Raises:
            SessionEndedError: the deadline came first.
        """
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()):
                return await work
        except TimeoutError as error:
            raise SessionEndedError("deadline") from error
