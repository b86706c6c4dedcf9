"""One real engine on the tiny model for all of this folder's tests marked `vllm`."""

import os
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from config.settings import Settings
from server.engine.launch import Launched, launch


@pytest.fixture(scope="session")
def settings(tiny_model: str) -> Settings:
    return Settings(
        _env_file=None,
        model=tiny_model,
        max_model_len=512,
        kv_cache_gib=0.25,
        max_num_seqs=16,
        log_level="WARNING",
        explore_share=0.0,
        # 128 tokens per step, so that longer prompts are prefilled in chunks; in float32 a prompt is answered
        # alike whether or not its prefix was cached; every route there is.
        vllm_args="--dtype float32 --max-num-batched-tokens 128 --enable-prompt-tokens-details "
        "--enable-auto-tool-choice --tool-call-parser hermes --enable-scale-out",
    )


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def launched(settings: Settings) -> AsyncIterator[Launched]:
    with pytest.MonkeyPatch.context() as patch:
        # One core of its own: on all of them its threads would wait for each other beside other tests.
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", str(min(os.sched_getaffinity(0))))
        async with launch(settings, settings.model) as running:
            yield running


@pytest_asyncio.fixture(loop_scope="session")
async def http(launched: Launched) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=launched.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
        yield client
