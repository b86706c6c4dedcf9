"""GET /v1/memory/export and POST /v1/memory/import: what is remembered as a file."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from server.api.deps import AccessDep, GatewayDep
from server.api.errors import refusals
from server.archive import exported, imported

router = APIRouter(prefix="/v1/memory", tags=["memory"])

TAR = "application/x-tar"
_CONTENT: dict[str, Any] = {TAR: {"schema": {"type": "string", "format": "binary"}}}


class Imported(BaseModel):
    """What was taken of an archive."""

    episodes: int = Field(description="In the archive.")
    added: int
    skipped: int = Field(description="There already, by id, and left as they are.")


@router.get("/export", response_class=StreamingResponse, responses={200: {"content": _CONTENT}, **refusals()})
async def export_memory(gateway: GatewayDep, access: AccessDep, request: Request) -> Response:
    """Return all episodes as a tar; the last file in it is `end.json`, or it was cut off."""
    name = f"memory-{gateway.space}.tar"
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    if request.method == "HEAD":
        return Response(media_type=TAR, headers=headers)
    return StreamingResponse(await exported(gateway, access.tenant), media_type=TAR, headers=headers)


@router.post(
    "/import",
    openapi_extra={"requestBody": {"content": _CONTENT, "required": True}},
    responses=refusals(409, 507),
)
async def import_memory(
    gateway: GatewayDep,
    access: AccessDep,
    request: Request,
    tenant: Annotated[
        str | None, Query(description="Whose archive it is, where another tenant has handed it over.")
    ] = None,
) -> Imported:
    """Remember the episodes of an archive that are not there yet. Sent again, it goes on where it ended."""
    pieces = _received(request)
    try:
        taken = await imported(gateway, access.tenant, pieces, tenant)
    except Exception:
        async for _ in pieces:  # a client that is still sending would not read the answer
            pass
        raise
    return Imported(episodes=taken.episodes, added=taken.added, skipped=taken.skipped)


async def _received(request: Request) -> AsyncIterator[bytes]:
    try:
        async for piece in request.stream():
            yield piece
    except ClientDisconnect:  # then the archive ends here
        return
