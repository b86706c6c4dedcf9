"""A verifier that answers over real HTTP whatever a test tells it to."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

HANG = b""
"""A reply that never comes."""


def reply(body: Any, status: str = "200 OK", *headers: str) -> bytes:
    """Return an HTTP response; a body that is no bytes becomes JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(content)}", "connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def scores(*values: Any) -> bytes:
    return reply({"scores": list(values)})


class Service:
    """Replies in the order given, the last one for ever, or as `judge` says; keeps what it was asked."""

    def __init__(self) -> None:
        self.replies: list[bytes] = [scores(1.0)]
        self.judge: Callable[[list[str]], list[float]] | None = None
        self.asked: list[dict[str, Any]] = []
        self.requests: list[bytes] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/score"

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1]) for line in head.split(b"\r\n") if b"content-length" in line.lower()
            )
            self.requests.append(head)
            self.asked.append(json.loads(await reader.readexactly(length)))
            answer = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
            if self.judge is not None:
                answer = scores(*self.judge(self.asked[-1]["answers"]))
            if answer == HANG:
                await reader.read()  # until the client gives up
            writer.write(answer)
            await writer.drain()
        except ConnectionError:
            pass  # the client had read enough
        finally:
            writer.close()


@asynccontextmanager
async def running() -> AsyncIterator[Service]:
    """Serve on a free port."""
    service = Service()
    server = await asyncio.start_server(service._answer, "127.0.0.1", 0)
    service.port = server.sockets[0].getsockname()[1]
    try:
        yield service
    finally:
        server.close()
        await server.wait_closed()
