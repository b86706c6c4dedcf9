"""What steering spent, inside the `usage` of an answer.

Owns the rewriting of vLLM's bodies, whole and streamed. Only answers of refined requests are touched, and
of those only what holds a `usage`; nothing of a stream is held back but a line that has not ended.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Send

from model.engine import Usage

SpentOf = Callable[[], Usage | None]
"""Tells, once the answer starts, what steering spent; None: nothing."""


def with_usage(send: Send, spent_of: SpentOf) -> Send:
    """Return a `send` that adds `latent` to the `usage` of chat completions and responses."""
    rewriter: _Whole | _Lines | None = None

    async def send_rewritten(message: Message) -> None:
        nonlocal rewriter
        if message["type"] == "http.response.start":
            rewriter = _rewriter(message, spent_of())
        for rewritten in [message] if rewriter is None else rewriter.take(message):
            await send(rewritten)

    return send_rewritten


def _rewriter(start: Message, spent: Usage | None) -> "_Whole | _Lines | None":
    headers = Headers(raw=start["headers"])
    if not spent or start["status"] != 200 or "content-encoding" in headers:
        return None
    match headers.get("content-type", "").partition(";")[0].strip():
        case "application/json":
            return _Whole(asdict(spent))
        case "text/event-stream":
            return _Lines(asdict(spent))
    return None


class _Whole:
    """A JSON body: vLLM sends it at once; its length is announced, so the head waits for it."""

    def __init__(self, spent: dict[str, int]) -> None:
        self._spent = spent
        self._start: Message = {}
        self._body = bytearray()

    def take(self, message: Message) -> list[Message]:
        if message["type"] == "http.response.start":
            self._start = message
            return []
        self._body += message.get("body", b"")
        if message.get("more_body", False):
            return []
        body = _told(bytes(self._body), self._spent)
        if "content-length" in (headers := MutableHeaders(scope=self._start)):
            headers["content-length"] = str(len(body))
        return [self._start, {**message, "body": body}]


class _Lines:
    """A stream of server-sent events, whose data are JSON of one line each."""

    def __init__(self, spent: dict[str, int]) -> None:
        self._spent = spent
        self._begun = b""
        """The line that has not ended yet."""

    def take(self, message: Message) -> list[Message]:
        if message["type"] != "http.response.body":
            return [message]
        *ended, self._begun = (self._begun + message.get("body", b"")).split(b"\n")
        lines = [self._line(line) + b"\n" for line in ended]
        if not message.get("more_body", False):
            lines.append(self._line(self._begun))
        return [{**message, "body": b"".join(lines)}]

    def _line(self, line: bytes) -> bytes:
        field, colon, data = line.partition(b":")
        if field != b"data" or b'"usage"' not in data:
            return line
        told = _told(data, self._spent)
        return line if told is data else field + colon + b" " + told


def _told(raw: bytes, spent: dict[str, int]) -> bytes:
    """Return the JSON with `latent` in its usage, or in that of its `response`; else `raw` itself."""
    try:
        parsed: Any = json.loads(raw)
        if not isinstance(parsed, dict):
            return raw
        # Events of a streamed response carry the response so far.
        holder = parsed if isinstance(parsed.get("usage"), dict) else parsed.get("response")
        if not isinstance(holder, dict) or not isinstance(holder.get("usage"), dict):
            return raw
        holder["usage"]["latent"] = spent
        # Spelled as vLLM spells it, so that nothing else of the body changes.
        return json.dumps(parsed, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (ValueError, RecursionError):
        return raw
