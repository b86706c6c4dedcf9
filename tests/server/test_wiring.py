"""How the gateway's parts are put together."""

import asyncio
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry

from config.settings import Settings
from memory.signal import announce
from server.wiring import assemble
from tests.scripted_engine import ScriptedEngine
from tests.tables import row


async def test_announced_prior_is_taken_up_before_the_next_poll(tmp_path: Path, redis_url: str) -> None:
    engine = ScriptedEngine()
    settings = Settings(
        _env_file=None, data_dir=tmp_path / "data", broker_url=redis_url, prior_poll_s=3600, night_episodes=0
    )

    async def answers() -> bool:
        return True

    async with assemble(
        settings,
        CollectorRegistry(),
        engine=engine,
        inner=None,
        served=tuple,
        engine_answers=answers,
        checks=(),
        send_night=lambda night_id: None,
    ) as gateway:
        length, hidden_size = engine.space.shape
        made = row(np.zeros((length, hidden_size)), np.eye(1, hidden_size))
        version = gateway.registry.publish([made], {})
        gateway.registry.activate(version)
        async with asyncio.timeout(20):
            while gateway.prior.current() is None:  # announced again, for the first may meet no listener yet
                await asyncio.to_thread(announce, redis_url, gateway.space)
                await asyncio.sleep(0.1)
        found = gateway.prior.current()
        assert found is not None
        assert found.version == version
