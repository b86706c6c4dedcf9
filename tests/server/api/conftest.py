"""The gateway's HTTP layer on scripted parts: real routes, memory and steering, no vLLM."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.sdk.trace.export import SpanExporter
from prometheus_client import CollectorRegistry

from config.settings import Settings
from server.app import create_app
from server.gateway import Gateway
from server.wiring import assemble
from tests.scripted_engine import ScriptedEngine
from tests.server.api.inner import MODEL, inner_app

CHAT = "/v1/chat/completions"


@dataclass
class CheckFound:
    """Result of a self-check."""

    name: str = "mixed-prompt"
    ok: bool = True
    value: float | None = 1.0
    detail: str = "as the reference"


@dataclass
class Served:
    """A running gateway and what stands behind it."""

    app: FastAPI
    http: httpx.AsyncClient
    engine: ScriptedEngine
    inner: FastAPI
    settings: Settings
    queued: list[str]

    @property
    def gateway(self) -> Gateway:
        return self.app.state.readiness.require()

    async def chat(self, question: str = "sum two and two", **fields: Any) -> httpx.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": question}]} | fields
        return await self.http.post(CHAT, json=body)


@dataclass
class Parts:
    """What tests change about the scripted parts."""

    checks: list[CheckFound] = field(default_factory=lambda: [CheckFound()])
    send_night: Callable[[str], None] | None = None
    broken: Exception | None = None
    spans: SpanExporter | None = None
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    """Parts open once this is set."""

    def __post_init__(self) -> None:
        self.opened.set()


Serve = Callable[..., Any]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """Start gateways; keywords are settings, `parts` what stands behind them."""
    async with AsyncExitStack() as stack:

        async def start(parts: Parts | None = None, *, ready: bool = True, **values: Any) -> Served:
            return await stack.enter_async_context(_served(tmp_path, parts or Parts(), ready, values))

        yield start


@pytest.fixture
async def served(serve: Serve) -> Served:
    """A running gateway with an empty memory."""
    return await serve()


@asynccontextmanager
async def _served(root: Path, parts: Parts, ready: bool, values: dict[str, Any]) -> AsyncIterator[Served]:
    settings = Settings(
        low_recalls=True,
        _env_file=None,
        **{
            "data_dir": root,
            "recall_timeout_s": 30,  # machines that run tests are busy
            "rewards": "confidence=1",  # ten steps surely raise it on the scripted model
            "high_steps": 10,
            "explore_share": 0.0,
            "remember_threshold": 0,
            "night_cron": "never",
            "night_episodes": 0,
            "prior_poll_s": 0.05,
            **values,
        },
    )
    engine = ScriptedEngine()
    inner = inner_app(engine)
    queued: list[str] = []

    async def alive() -> bool:
        return engine.alive

    @asynccontextmanager
    async def opener(
        settings: Settings, registry: CollectorRegistry, _: Callable[[], None]
    ) -> AsyncIterator[Gateway]:
        await parts.opened.wait()
        if parts.broken is not None:
            raise parts.broken
        async with assemble(
            settings,
            registry,
            engine=engine,
            inner=inner,
            served=lambda: {MODEL},
            engine_answers=alive,
            checks=parts.checks,
            send_night=parts.send_night or queued.append,
            spans=parts.spans,
        ) as gateway:
            inner.state.steer = gateway.steering.steer
            inner.state.answered = gateway.steering.answered
            yield gateway

    app = create_app(settings, opener=opener, registry=CollectorRegistry())
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=30) as http,
    ):
        if ready:
            await app.state.readiness.settled()
        yield Served(app, http, engine, inner, settings, queued)
