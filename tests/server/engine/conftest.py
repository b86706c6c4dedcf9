"""One real engine on the real small model for all of this folder's tests marked `vllm`."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from config.settings import DEFAULT_MODEL, Settings
from model.pull import resolve_model
from server.engine.launch import Launched, launch

CACHE = Path(__file__).parents[3] / ".cache"


@pytest.fixture(scope="session")
def settings() -> Settings:
    return Settings(
        _env_file=None,
        model=DEFAULT_MODEL,
        cache_dir=CACHE,
        max_model_len=512,
        kv_cache_gib=0.25,
        max_num_seqs=16,
        log_level="WARNING",
        # 128 tokens per step, so that longer prompts are prefilled in chunks.
        vllm_args="--max-num-batched-tokens 128 --enable-prompt-tokens-details",
    )


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def launched(settings: Settings) -> AsyncIterator[Launched]:
    path = resolve_model(settings.model, settings.cache_dir, logging.info)
    async with launch(settings, path) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def http(launched: Launched) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=launched.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
        yield client
