"""Prompts of which only a latent's rows travel to the engine.

vLLM (0.32) carries, copies and sends a mixed prompt's embeddings as one matrix with a row for each token,
also for those that it looks up itself. Owns what stands in that matrix's place, and one change to vLLM at
either end: the rows are sent alone, and get their place back where they arrive.

Where workers have processes of their own (tensor parallelism), nothing of ours runs in the one that
schedules; then prompts travel as vLLM has it.
"""

import multiprocessing
from collections.abc import Awaitable, Callable
from typing import Any

import torch


class LatentRows:
    """Input embeddings of a prompt, (T, d), that are zero but for a latent's rows.

    Has what vLLM asks of the matrix: length, shape and slices.
    """

    def __init__(self, rows: torch.Tensor, position: int, length: int) -> None:
        """Place `rows`, (L, d), at `position` in a prompt of `length` tokens, T."""
        self.rows = rows
        self.shape = torch.Size((length, rows.shape[1]))
        self._position = position

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, tokens: slice) -> torch.Tensor:
        start, end, _ = tokens.indices(len(self))
        count = max(0, end - start)
        first = max(start, self._position)
        last = min(end, self._position + len(self.rows))
        if first >= last:
            return self.rows.new_zeros(1, self.shape[1]).expand(count, -1)  # takes the memory of one row
        dense = self.rows.new_zeros(count, self.shape[1])
        dense[first - start : last - start] = self.rows[first - self._position : last - self._position]
        return dense


def send_rows_alone(llm: Any) -> None:
    """Let the front end of `llm`, an `AsyncLLM`, send of `LatentRows` the rows only."""
    client = llm.engine_core
    add_request: Callable[[Any], Awaitable[None]] = client.add_request_async

    async def add_request_with_rows(request: Any) -> None:
        if isinstance(request.prompt_embeds, LatentRows):
            request.prompt_embeds = request.prompt_embeds.rows
        await add_request(request)

    client.add_request_async = add_request_with_rows


def take_rows_alone() -> bool:
    """Let the engine take prompts with a latent's rows only; again is harmless.

    Returns:
        Whether this is the process that schedules.
    """
    from vllm.v1.request import Request

    if not multiprocessing.current_process().name.startswith("EngineCore"):
        return False
    from_core_request = Request.from_engine_core_request
    if from_core_request.__module__ != __name__:

        def from_request_with_rows(request: Any, *args: Any) -> Any:
            mask, rows = request.prompt_is_token_ids, request.prompt_embeds
            if mask is not None and rows is not None and len(rows) < len(mask):
                request.prompt_embeds = LatentRows(rows, mask.index(False), len(mask))
            return from_core_request(request, *args)

        Request.from_engine_core_request = staticmethod(from_request_with_rows)
    return True
