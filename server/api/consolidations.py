"""POST and GET /v1/consolidations: starting nights and watching them."""

from typing import Any, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from server.api.deps import GatewayDep
from server.errors import NotFoundError

router = APIRouter(prefix="/v1/consolidations", tags=["consolidations"])


class StartNight(BaseModel):
    """Body of POST /v1/consolidations; may be left out."""

    model_config = ConfigDict(extra="forbid")

    trigger: Literal["api", "cli", "schedule"] = "api"


@router.post("", status_code=202)
async def start(gateway: GatewayDep, body: StartNight | None = None) -> dict[str, Any]:
    """Queue a night and return its record; `skipped` when there is too little to consolidate."""
    record = await gateway.nights.start((body or StartNight()).trigger)
    return record.to_json()


@router.get("")
async def nights(gateway: GatewayDep) -> dict[str, Any]:
    """Return every night, newest first."""
    return {"consolidations": [record.to_json() for record in await gateway.nights.list()]}


@router.get("/{night_id}")
async def night(gateway: GatewayDep, night_id: str) -> dict[str, Any]:
    """Return one night's record, which its worker keeps up to date."""
    try:
        name = str(UUID(night_id))  # ids name files, so nothing else gets through
    except ValueError:
        raise NotFoundError("ids of consolidations are UUIDs", "night_id") from None
    record = await gateway.nights.get(name)
    if record is None:
        raise NotFoundError(f"no consolidation {name}", "night_id")
    return record.to_json()
