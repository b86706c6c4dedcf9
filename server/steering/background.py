"""Work that requests leave behind and never wait for.

Owns the task, its waking, and what is waited for at the end. Knows nothing of what is written.
"""

import asyncio
from collections.abc import Awaitable, Callable


class Background:
    """Writes what piles up, in batches, whenever there is some.

    Args:
        name: Of the task.
        write: Writes a batch and returns whether there was one; called again until there was none. Raises
            nothing.
    """

    def __init__(self, name: str, write: Callable[[], Awaitable[bool]]) -> None:
        self._name, self._write = name, write
        self._added = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to write. Needs a running event loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=self._name)

    def wake(self) -> None:
        """Tell it that there is something to write."""
        self._idle.clear()
        self._added.set()

    async def drain(self, timeout_s: float) -> bool:
        """Wait until everything is written; False when that took too long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def close(self, timeout_s: float) -> None:
        """Write what there is, for at most so long, and stop."""
        if self._task is not None:
            await self.drain(timeout_s)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._idle.set()

    async def _run(self) -> None:
        while True:
            await self._added.wait()
            self._added.clear()
            while await self._write():
                pass
            if not self._added.is_set():
                self._idle.set()
