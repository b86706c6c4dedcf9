"""Bearer authentication.

Owns which routes are open. Everything else, vLLM's routes included, asks for the key.
"""

import hashlib
import secrets

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.errors import response_of
from server.errors import UnauthorizedError

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics", "/health", "/ping", "/dashboard"})
OPEN_FOLDER = "/dashboard/"
"""The dashboard's files, which hold no data."""


class Authentication:
    """ASGI middleware that lets requests pass that bear the key."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self.app = app
        self._digest = _digest(api_key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _is_open(scope["path"]):
            return await self.app(scope, receive, send)
        if scope["type"] not in ("http", "websocket") or self._knows(Headers(scope=scope)):
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            await receive()
            return await send({"type": "websocket.close", "code": 1008, "reason": "unauthorized"})
        error = UnauthorizedError("send the server's API key as `Authorization: Bearer KEY`")
        return await response_of(error, scope["path"])(scope, receive, send)

    def _knows(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        # Digests have one length, so that the comparison's time tells nothing of the key's.
        return secrets.compare_digest(_digest(token), self._digest) and scheme.lower() == "bearer"


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.strip().encode()).digest()
