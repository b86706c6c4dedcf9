"""No process of vLLM outlives what started it."""

import asyncio
import gc
import logging
import multiprocessing

import pytest

from config.settings import Settings
from model.pull import resolve_model
from server.engine.launch import launch

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="session")]


def children() -> set[int | None]:
    return {child.pid for child in multiprocessing.active_children()}


# vLLM leaves its sockets to the garbage collector when its constructor fails.
@pytest.mark.filterwarnings("ignore:Unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_cancelled_start_ends_the_half_started_engine(settings: Settings) -> None:
    path = resolve_model(settings.model, settings.cache_dir, logging.info)
    before = children()

    async def start() -> None:
        async with launch(settings.model_copy(update={"twin": False}), path):
            pytest.fail("started before it was cancelled")

    starting = asyncio.create_task(start())
    while not children() - before and not starting.done():  # noqa: ASYNC110 - nobody tells of processes
        await asyncio.sleep(0.05)
    await asyncio.sleep(1)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert children() == before
    del starting
    gc.collect()


async def test_options_that_vllm_does_not_know_are_named(settings: Settings) -> None:
    path = resolve_model(settings.model, settings.cache_dir, logging.info)
    with pytest.raises(ValueError, match="--no-such-option"):
        async with launch(settings.model_copy(update={"vllm_args": "--no-such-option 1"}), path):
            pass
