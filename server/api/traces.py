"""GET /v1/latent/traces/{id}: what steering did for one request."""

import asyncio
from typing import Any, Literal
from uuid import UUID

from fastapi import APIRouter

from server.api.deps import GatewayDep
from server.errors import NotFoundError

router = APIRouter(prefix="/v1/latent", tags=["latent"])


@router.get("/traces/{trace_id}")
async def trace(
    gateway: GatewayDep, trace_id: str, include: Literal["latent"] | None = None
) -> dict[str, Any]:
    """Return a trace with its feedback; `include=latent` adds the latent's values, for replay."""
    try:
        name = str(UUID(trace_id))  # ids name files, so nothing else gets through
    except ValueError:
        raise NotFoundError("trace ids are UUIDs, as in x-latent-trace", "trace_id") from None
    found = await gateway.traces.get(name, include_latent=include == "latent")
    if found is None:
        raise NotFoundError(f"no trace {name}; old ones are deleted", "trace_id")
    said = await asyncio.to_thread(gateway.state.feedback_on, name)
    found["feedback"] = [
        {
            "id": one.id,
            "metric_name": one.metric_name,
            "value": one.value,
            "tags": one.tags,
            "created_at": one.created_at.isoformat(),
        }
        for one in said
    ]
    return found
