"""Hidden states on their way from vLLM's workers.

Owns fetching: calls into the workers wait for the engine's current step, so those asked for while a
call runs share the next one. Knows nothing of what the states are for.
"""

import asyncio
from typing import Any

import torch

from model.engine import EngineError
from server.engine.errors import translated


class StateFetcher:
    """Fetches final hidden states that `StateCatcher` keeps."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._waiting: dict[str, asyncio.Future[torch.Tensor]] = {}
        self._running: asyncio.Task[None] | None = None

    async def fetch(self, request_id: str) -> torch.Tensor:
        """Return the state, (d,), of a finished key request."""
        future: asyncio.Future[torch.Tensor] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = future
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, {}
            try:
                with translated():
                    answers = await self._llm.collective_rpc("take_key_states", args=(list(batch),))
            except Exception as error:
                for future in batch.values():
                    if not future.done():
                        future.set_exception(error)
                continue
            found: dict[str, bytes] = {}
            for answer in answers:  # one per worker; only the last pipeline stage has states
                found |= answer
            for request_id, future in batch.items():
                if future.done():
                    continue
                if request_id in found:
                    future.set_result(floats(found[request_id]))
                else:
                    future.set_exception(EngineError("the worker kept no hidden state of the request"))


def floats(data: bytes) -> torch.Tensor:
    """Return float32 bytes as a tensor of one dimension."""
    return torch.frombuffer(bytearray(data), dtype=torch.float32)
