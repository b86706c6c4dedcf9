"""GET /dashboard: the page for people, and its files.

Owns how browsers get them, and what they may do with them. They hold no data and ask for no key; what the
page shows it asks for by the API, with the key that its user gives it.
"""

from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from starlette.staticfiles import StaticFiles

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parents[1] / "dashboard"

_FILES = StaticFiles(directory=FOLDER)
_HEADERS = {
    # Nothing of another host, and no script that is not a file of ours.
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # asked again each time; unchanged, it costs a 304
}


@router.get("/dashboard")
async def page(request: Request) -> Response:
    """Return the page; its links are relative, for a proxy may serve all this under a prefix."""
    return await _file("index.html", request)


@router.get("/dashboard/")
async def above() -> RedirectResponse:
    """Lead to the page, from where its links are right."""
    return RedirectResponse("../dashboard")


@router.get("/dashboard/{name:path}")
async def file(request: Request, name: str) -> Response:
    """Return a file of the page."""
    return await _file(name, request)


async def _file(name: str, request: Request) -> Response:
    response = await _FILES.get_response(name, request.scope)
    response.headers.update(_HEADERS)
    return response
