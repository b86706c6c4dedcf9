"""The processes of vLLM's engine: started without blocking the event loop, never left behind.

Owns starting and stopping `AsyncLLM`. Knows nothing of latents or HTTP.
"""

import asyncio
import contextlib
import logging
import multiprocessing
import signal
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any

from model.engine import EngineDeadError
from server.engine.guard import renderer_without_embeds

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


async def start_engine(args: Namespace) -> Any:
    """Return a running `AsyncLLM` of parsed `vllm serve` arguments.

    A signal to end, or cancellation, ends the half-started processes at once.

    Raises:
        EngineDeadError: the engine did not start, or was told to end while it did.
    """
    before = {child.pid for child in multiprocessing.active_children()}
    starting = asyncio.create_task(asyncio.to_thread(_build, args))
    interrupted = asyncio.Event()
    waiting = asyncio.create_task(interrupted.wait())
    try:
        with _deferred_signals(asyncio.get_running_loop(), interrupted.set):
            try:
                await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not starting.done():
                    await _abandon(starting, before)
        if interrupted.is_set():
            if not starting.cancelled() and starting.exception() is None:
                await stop_engine(starting.result())
            raise EngineDeadError("told to end while the engine was starting")
        return starting.result()
    except EngineDeadError:
        raise
    except Exception as error:
        _kill_engine_cores(before)
        raise EngineDeadError(f"vLLM did not start: {error}") from error
    finally:
        waiting.cancel()


async def stop_engine(llm: Any) -> None:
    """End an `AsyncLLM` and the processes behind it."""
    await asyncio.to_thread(llm.shutdown)


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
            kill_process_tree(child.pid)


@contextlib.contextmanager
def _deferred_signals(loop: asyncio.AbstractEventLoop, notify: Callable[[], Any]) -> Iterator[None]:
    """Tell of a signal to end, and hand it to the handler that was there before only afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def remember(number: int, _frame: Any) -> None:
        received.append(number)
        loop.call_soon_threadsafe(notify)

    previous = {number: signal.signal(number, remember) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])
