"""GET /healthz and /readyz: whether the process lives, and whether it can serve.

A failed self-check does not make the gateway unready: it then serves plain answers, and says so here
and in the headers of each.
"""

import asyncio
import logging
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from memory.database import StateUnavailableError
from memory.episode import StoreUnavailableError
from server.access import WAIT_S, Doorman
from server.api.deps import ReadinessDep
from server.steering.store_access import StoreAccess

logger = logging.getLogger(__name__)
router = APIRouter(tags=["health"])


class CheckRead(BaseModel):
    """What one self-check at the start found."""

    name: str
    ok: bool
    value: float | None
    detail: str


class ReadyRead(BaseModel):
    """Whether the gateway can serve."""

    ready: bool
    engine: bool
    memory: bool
    checks: list[CheckRead]
    steering: bool = Field(description="Whether every self-check passed; else answers are plain.")
    keys: bool | None = Field(None, description="Whether an API key is asked for; null: that is not known.")
    failure: str | None = Field(None, description="Why it will never be there.")


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz", responses={200: {"model": ReadyRead}, 503: {"model": ReadyRead}})
async def readyz(readiness: ReadinessDep) -> JSONResponse:
    """The engine has answered a real token and still lives, and memory is open."""
    gateway = readiness.gateway
    if gateway is None:
        return JSONResponse(
            {
                "ready": False,
                "engine": False,
                "memory": False,
                "checks": [],
                "steering": False,
                "failure": readiness.failure,
            },
            status_code=503,
        )
    engine, memory, keys = await asyncio.gather(
        gateway.engine_answers(), _answers(gateway.lookups), _asks_for_keys(gateway.doorman)
    )
    body: dict[str, Any] = {
        "ready": engine and memory,
        "engine": engine,
        "memory": memory,
        "checks": [
            {"name": check.name, "ok": check.ok, "value": check.value, "detail": check.detail}
            for check in gateway.checks
        ],
        "steering": gateway.steering.disabled is None,
        "keys": keys,
    }
    return JSONResponse(body, status_code=200 if body["ready"] else 503)


async def _asks_for_keys(doorman: Doorman) -> bool | None:
    try:
        async with asyncio.timeout(WAIT_S):  # probes do not wait for a state that hangs
            return await doorman.asks_for_keys()
    except (StateUnavailableError, TimeoutError):
        return None


async def _answers(lookups: StoreAccess) -> bool:
    try:
        await lookups.call(lambda store: store.count())
    except StoreUnavailableError as error:
        logger.warning("memory does not answer: %s", error)
        return False
    return True
