"""The processes of vLLM's engine: started without blocking the event loop, never left behind.

Owns starting and stopping `AsyncLLM`. Knows nothing of latents or HTTP.
"""

import asyncio
import contextlib
import logging
import multiprocessing
from argparse import Namespace
from typing import Any

from model.engine import EngineDeadError
from server.engine.guard import renderer_without_embeds

logger = logging.getLogger(__name__)

_END_S = 10.0
"""How long processes may take to end by themselves (vLLM needs 5 s); killed, they leave shared memory."""


async def start_engine(args: Namespace) -> Any:
    """Return a running `AsyncLLM` of parsed `vllm serve` arguments.

    Cancellation ends the half-started processes at once.

    Raises:
        EngineDeadError: the engine did not start.
    """
    before = {child.pid for child in multiprocessing.active_children()}
    starting = asyncio.create_task(asyncio.to_thread(_build, args))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        await _abandon(starting, before)
        raise
    except Exception as error:
        _kill_engine_cores(before)
        raise EngineDeadError(f"vLLM did not start: {error}") from error


async def stop_engine(llm: Any) -> None:
    """End an `AsyncLLM` and the processes behind it."""
    await asyncio.to_thread(llm.shutdown, _END_S)
    multiprocessing.active_children()  # reaps those that ended


def _build(args: Namespace) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    engine_args = AsyncEngineArgs.from_cli_args(args)
    with renderer_without_embeds():
        return AsyncLLM.from_engine_args(engine_args, usage_context=UsageContext.OPENAI_API_SERVER)


async def _abandon(starting: "asyncio.Task[Any]", before: set[int | None]) -> None:
    # The thread cannot be interrupted, but it fails once the processes it waits for are gone. They
    # may be born after the first look.
    while not starting.done():
        _kill_engine_cores(before)
        await asyncio.wait({starting}, timeout=0.2)
    with contextlib.suppress(Exception):
        await stop_engine(starting.result())


def _kill_engine_cores(before: set[int | None]) -> None:
    from vllm.utils.system_utils import kill_process_tree

    for child in multiprocessing.active_children():
        if child.pid is not None and child.pid not in before and child.name.startswith("EngineCore"):
            logger.info("ending %s, pid %d, before it is ready", child.name, child.pid)
            kill_process_tree(child.pid)
