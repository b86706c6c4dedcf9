"""GET /docs and /openapi.json: every route of the server, vLLM's and ours, on one page.

The page loads nothing from another host: its script and style are those that vLLM brings along
(`--enable-offline-docs`, server/engine/launch.py).
"""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

from server.api.deps import GatewayDep
from server.errors import NotFoundError

router = APIRouter(include_in_schema=False)


def _documented(gateway: GatewayDep) -> FastAPI:
    if gateway.inner.openapi_url is None:
        raise NotFoundError("the schema is turned off (--disable-fastapi-docs)")
    return gateway.inner


InnerDep = Annotated[FastAPI, Depends(_documented)]


@router.get("/docs")
async def page(inner: InnerDep) -> HTMLResponse:
    """Return Swagger UI; its links are relative, for a proxy may serve all this under a prefix."""
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title="LatentEvolve",
        swagger_js_url="static/swagger-ui-bundle.js",
        swagger_css_url="static/swagger-ui.css",
        swagger_favicon_url="data:,",
    )


@router.get("/openapi.json")
async def schema(request: Request, inner: InnerDep) -> dict[str, Any]:
    """Return the OpenAPI schema of vLLM's routes and ours."""
    ours = _without_422(request.app.openapi())
    theirs: dict[str, Any] = await asyncio.to_thread(inner.openapi)  # a second or two of work, once
    schemas = [part.get("components", {}).get("schemas", {}) for part in (theirs, ours)]
    return {
        **ours,
        "paths": {**theirs["paths"], **ours["paths"]},
        "components": {"schemas": {**schemas[0], **schemas[1]}},
    }


def _without_422(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema without the status that FastAPI would refuse fields with; ours is 400."""
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schema.get("components", {}).get("schemas", {}).pop(name, None)
    return schema
