"""The processes of vLLM's engine: started without blocking the event loop, never left behind.

Owns starting and stopping `AsyncLLM`. Knows nothing of latents or HTTP.
"""

import asyncio
import contextlib
import logging
import multiprocessing
from argparse import Namespace
from collections.abc import Iterator
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
    config = engine_args.create_engine_config(UsageContext.OPENAI_API_SERVER)
    alone = args.distributed_executor_backend is None and _is_one_worker_on_cpu(config)
    with renderer_without_embeds(), _worker_in_engine_core(config) if alone else contextlib.nullcontext():
        return AsyncLLM.from_vllm_config(
            config,
            usage_context=UsageContext.OPENAI_API_SERVER,
            enable_log_requests=engine_args.enable_log_requests,
            disable_log_stats=engine_args.disable_log_stats,
        )


def _is_one_worker_on_cpu(config: Any) -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu() and config.parallel_config.world_size_across_dp == 1)


@contextlib.contextmanager
def _worker_in_engine_core(config: Any) -> Iterator[None]:
    """Let an engine that is started now compute in the process that schedules, as on one GPU.

    By default a CPU's only worker is another process, whose threads vLLM binds to cores through its
    environment. The same environment around the start of the engine core binds them there, and saves
    the third import of vLLM, its memory, and a change of process for every step.
    """
    from vllm.utils.ompmultiprocessing import OMPProcessManager
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    config.parallel_config.distributed_executor_backend = UniProcExecutor
    with OMPProcessManager(config).configure_omp_envs(rank=0, local_rank=0):
        yield


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
