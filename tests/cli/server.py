"""A gateway with the real routes on a real port, with a scripted model behind them."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from prometheus_client import CollectorRegistry

from config.settings import Settings
from memory.episode import Episode
from server.app import create_app
from server.gateway import Gateway
from server.wiring import assemble
from tests.cli.ports import free_port
from tests.scripted_engine import ScriptedEngine
from tests.server.api.inner import MODEL, inner_app
from worker.night import run_night


class Server:
    """A gateway without vLLM, in a thread; with `works` nights are run as they are asked for."""

    def __init__(self, data_dir: Path, *, works: bool = False, **settings: Any) -> None:
        self.engine = ScriptedEngine()
        own = Settings(_env_file=None, data_dir=data_dir, night_cron="never", explore_share=0, **settings)

        async def alive() -> bool:
            return True

        def consolidate(night_id: str) -> None:
            """Run a night as a worker would, beside the gateway."""
            night = run_night(night_id, own, lambda settings: ScriptedEngine())
            threading.Thread(target=asyncio.run, args=(night,), daemon=True).start()

        @asynccontextmanager
        async def opener(
            settings: Settings, registry: CollectorRegistry, _: Callable[[], None]
        ) -> AsyncIterator[Gateway]:
            inner = inner_app(self.engine)
            async with assemble(
                settings,
                registry,
                engine=self.engine,
                inner=inner,
                served=lambda: {MODEL},
                engine_answers=alive,
                checks=[],
                send_night=consolidate if works else lambda _: None,
            ) as gateway:
                inner.state.steer = gateway.steering.steer
                inner.state.answered = gateway.steering.answered
                yield gateway

        self.app = create_app(own, opener=opener, registry=CollectorRegistry())
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._server = uvicorn.Server(uvicorn.Config(self.app, port=port, log_config=None))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not (self._server.started and self.app.state.readiness.gateway):
            time.sleep(0.01)

    @property
    def gateway(self) -> Gateway:
        return self.app.state.readiness.require()

    def remember(self, count: int) -> list[Episode]:
        """Store so many episodes, whose topics are two."""
        length, hidden_size = self.engine.space.shape
        rng = np.random.default_rng(1)
        episodes = []
        for number in range(count):
            key = rng.normal(size=hidden_size)
            episodes.append(
                Episode(
                    space=self.gateway.space,
                    key=(key / np.linalg.norm(key)).astype(np.float32),
                    latent=rng.normal(size=(length, hidden_size)).astype(np.float32),
                    reward=number / count,
                    signals={"consistency": 1.0},
                    prompt_token_ids=(1, number),
                    answer_token_ids=(2,),
                    prompt_text=f"{'words ' * 20}question {number}",
                    answer_text=f"\x1b[31manswer {number}",
                )
            )
        self.gateway.store.add(episodes)
        return episodes

    def close(self) -> None:
        """End the server."""
        self._server.should_exit = True
        self._thread.join(20)
