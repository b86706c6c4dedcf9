"""How much of a body is read.

Owns the limits, for every route that reads bodies whole. Knows nothing of what is in them.
"""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import response_of
from server.errors import BodyTooLargeError

MAX_BODY_BYTES = 64 * 2**20
MOST_COMMAS, MOST_COMMAS_OF_TOKENS = 200_000, 1_000_000
"""Of JSON: each stands between two values, and a value takes some hundred bytes when read, a token few."""
TOKEN_PATHS = frozenset({"/v1/completions", "/tokenize", "/v1/embeddings", "/pooling"})
"""Routes whose bodies may be many prompts of tokens."""

STREAMED_PATHS = frozenset({"/v1/memory/import"})
"""Routes that hold no more than a part of a body."""


class BodyLimit:
    """ASGI middleware that ends the reading of bodies that are too long."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in STREAMED_PATHS:
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        is_upload = headers.get("content-type", "").lower().startswith("multipart/")
        most = MOST_COMMAS_OF_TOKENS if scope["path"] in TOKEN_PATHS else MOST_COMMAS
        announced = headers.get("content-length", "")
        known = int(announced[:20]) if announced.isascii() and announced.isdigit() else 0
        error = BodyTooLargeError(
            f"the body is longer than {MAX_BODY_BYTES} bytes, or has more than {most} commas", "body"
        )
        length = commas = 0
        exceeded = False

        async def bounded() -> Message:
            nonlocal length, commas, exceeded
            exceeded = exceeded or known > MAX_BODY_BYTES
            message = {} if exceeded else await receive()
            piece = message.get("body", b"")
            length, commas = length + len(piece), commas + piece.count(b",")
            exceeded = exceeded or length > MAX_BODY_BYTES or (commas > most and not is_upload)
            if exceeded:
                raise error
            return message

        answered = False

        async def corrected(message: Message) -> None:
            nonlocal answered
            if exceeded and not answered and message["type"] == "http.response.start":
                answered = message["status"] != error.status
                if answered:  # a framework took it for a body that it cannot parse
                    await response_of(error, scope["path"])(scope, receive, send)
            if not answered:
                await send(message)

        await self.app(scope, bounded, corrected)
