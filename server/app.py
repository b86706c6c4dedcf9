"""The gateway's ASGI app.

Owns the order of its layers, from the outside in: CORS, request ids, authentication, the limit of bodies, our
own routes, and vLLM's app, with steering around it, for everything else. What the parts are is
server/wiring.py's.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from copy import copy

from fastapi import FastAPI
from fastapi.routing import APIRoute
from prometheus_client import REGISTRY, CollectorRegistry
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

from config.settings import Settings
from server.api import (
    api_keys,
    archive,
    consolidations,
    dashboard,
    docs,
    embeddings,
    experiments,
    feedback,
    health,
    landscape,
    memory,
    metrics,
    priors,
    schedule,
    traces,
)
from server.api.auth import Authentication, access_of
from server.api.body_limit import BodyLimit
from server.api.cors import cors_options
from server.api.errors import install_on_gateway, response_of
from server.api.requests import RequestIds
from server.api.steered import SteeredRoutes
from server.errors import NotReadyError
from server.gateway import Gateway, Readiness
from server.wiring import open_gateway

logger = logging.getLogger(__name__)

Opener = Callable[[Settings, CollectorRegistry, Callable[[], None]], AbstractAsyncContextManager[Gateway]]


def create_app(
    settings: Settings,
    *,
    opener: Opener = open_gateway,
    registry: CollectorRegistry = REGISTRY,
    stop: Callable[[], None] = lambda: None,
) -> FastAPI:
    """Return the gateway; its lifespan opens the parts in the background, so that probes are answered.

    Args:
        settings: Of the whole process.
        opener: Builds the running parts and closes them; tests give their own.
        registry: Where metrics are registered; vLLM's own are in the default one.
        stop: Ends the process; called when the parts cannot be opened, or the engine died.
    """
    readiness = Readiness()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        ending = asyncio.Event()
        running = asyncio.create_task(_run(readiness, opener(settings, registry, stop), ending, stop))
        try:
            yield
        finally:
            ending.set()
            if readiness.gateway is None:
                running.cancel()  # still loading the model: nobody waits for that
            await asyncio.gather(running, return_exceptions=True)

    app = FastAPI(
        title="LatentEvolve",
        lifespan=lifespan,
        openapi_url=None,  # server/api/docs.py has the schema of all routes
        redirect_slashes=False,
    )
    app.state.readiness = readiness
    app.state.metrics = registry
    ours = (
        health,
        metrics,
        docs,
        traces,
        feedback,
        memory,
        landscape,
        archive,
        priors,
        consolidations,
        schedule,
        experiments,
        embeddings,
        api_keys,
    )
    for part in ours:
        app.include_router(part.router)
    if settings.dashboard:
        app.include_router(dashboard.router)
    _answer_head(app)
    install_on_gateway(app)
    app.router.default = SteeredRoutes(_Inner(readiness), readiness)
    # What is added later stands further outside.
    app.add_middleware(BodyLimit)
    cors = cors_options(settings.vllm_args)
    origins = cors["allow_origins"] if cors else ()
    app.add_middleware(Authentication, readiness=readiness, settings=settings, origins=origins)
    app.add_middleware(RequestIds, registry=registry)
    if cors:
        app.add_middleware(CORSMiddleware, **cors)
    return app


def _answer_head(app: FastAPI) -> None:
    """Let every route that has GET have HEAD, which FastAPI does not do by itself."""
    for route in [*app.routes]:
        if isinstance(route, APIRoute) and "GET" in route.methods:
            head = copy(route)
            head.methods, head.include_in_schema = {"HEAD"}, False
            app.routes.append(head)


async def _run(
    readiness: Readiness,
    opening: AbstractAsyncContextManager[Gateway],
    ending: asyncio.Event,
    stop: Callable[[], None],
) -> None:
    """Open the parts, keep them until `ending`, close them: all in one task, as cancel scopes ask."""
    try:
        async with opening as gateway:
            readiness.open(gateway)
            await ending.wait()
            readiness.close()
    except Exception as error:
        readiness.close(f"{type(error).__name__}: {error}")
        if ending.is_set():
            logger.warning("the gateway did not close in order: %s", readiness.failure)
            return
        logger.exception("the gateway could not be opened or closed")
        stop()


class _Inner:
    """vLLM's app, once it is there."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            inner = self._readiness.require().inner
            access_of(scope)
        except NotReadyError as error:
            if scope["type"] == "websocket":
                await receive()
                return await send({"type": "websocket.close", "code": 1013, "reason": str(error)})
            return await response_of(error, scope["path"])(scope, receive, send)
        return await inner(scope, receive, send)
