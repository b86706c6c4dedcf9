"""`python -m tests.server.scripted_gateway`: a gateway as a process, with a model that has no weights.

Everything but the engine and vLLM's routes is the real thing, from the settings in the environment.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import uvicorn
from prometheus_client import CollectorRegistry

from config.settings import Settings
from server.app import create_app
from server.gateway import Gateway
from server.log import configure_logging
from server.wiring import assemble
from tests.scripted_engine import ScriptedEngine
from tests.server.api.inner import MODEL, inner_app


@asynccontextmanager
async def opener(
    settings: Settings, registry: CollectorRegistry, _: Callable[[], None]
) -> AsyncIterator[Gateway]:
    """Build the parts around a scripted engine."""
    engine = ScriptedEngine()
    inner = inner_app(engine)

    async def alive() -> bool:
        return True

    async with assemble(
        settings,
        registry,
        engine=engine,
        inner=inner,
        served=lambda: {MODEL},
        engine_answers=alive,
        checks=(),
    ) as gateway:
        inner.state.steer = gateway.steering.steer
        inner.state.answered = gateway.steering.answered
        yield gateway


def main() -> None:
    """Serve until told to end."""
    settings = Settings(_env_file=None)
    configure_logging(settings.log_level)
    app = create_app(settings, opener=opener, registry=CollectorRegistry())
    uvicorn.run(app, host=settings.host, port=settings.port, log_config=None, timeout_graceful_shutdown=2)


if __name__ == "__main__":
    main()
