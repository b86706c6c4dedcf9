"""What steering spent and did, inside the body of an answer.

Owns the rewriting of vLLM's bodies, whole and streamed. Only answers that were searched for and those of
steered batches are touched, and of those only what holds a `usage`; nothing of a stream is held back but a
line that has not ended.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Send

from model.engine import Usage


@dataclass(frozen=True)
class Told:
    """What an answer's body says beside vLLM's own."""

    spent: Usage = field(default_factory=Usage)
    """By steering: `latent` of the body's `usage`, where there was any."""
    choices: Sequence[Mapping[str, str]] = ()
    """`latent` of each choice, by its index."""


def with_usage(send: Send, told_of: Callable[[], Told]) -> Send:
    """Return a `send` that adds `latent` to the `usage` and the choices of an answer.

    Args:
        told_of: Called once the answer starts.
    """
    rewriter: _Whole | _Lines | None = None

    async def send_rewritten(message: Message) -> None:
        nonlocal rewriter
        if message["type"] == "http.response.start":
            rewriter = _rewriter(message, told_of())
        for rewritten in [message] if rewriter is None else rewriter.take(message):
            await send(rewritten)

    return send_rewritten


def _rewriter(start: Message, told: Told) -> "_Whole | _Lines | None":
    headers = Headers(raw=start["headers"])
    if told == Told() or start["status"] != 200 or "content-encoding" in headers:
        return None
    match headers.get("content-type", "").partition(";")[0].strip():
        case "application/json":
            return _Whole(told)
        case "text/event-stream":
            return _Lines(told)
    return None


class _Whole:
    """A JSON body: vLLM sends it at once; its length is announced, so the head waits for it."""

    def __init__(self, told: Told) -> None:
        self._told = told
        self._start: Message = {}
        self._body = bytearray()

    def take(self, message: Message) -> list[Message]:
        if message["type"] == "http.response.start":
            self._start = message
            return []
        self._body += message.get("body", b"")
        if message.get("more_body", False):
            return []
        body = _with(bytes(self._body), self._told)
        if "content-length" in (headers := MutableHeaders(scope=self._start)):
            headers["content-length"] = str(len(body))
        return [self._start, {**message, "body": body}]


class _Lines:
    """A stream of server-sent events, whose data are JSON of one line each."""

    def __init__(self, told: Told) -> None:
        self._told = told
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
        name, colon, data = line.partition(b":")
        if name != b"data" or b'"usage"' not in data:
            return line
        rewritten = _with(data, self._told)
        return line if rewritten is data else name + colon + b" " + rewritten


def _with(raw: bytes, told: Told) -> bytes:
    """Return the JSON with `latent` in its usage, or in that of its `response`, and choices; else `raw`."""
    try:
        parsed: Any = json.loads(raw)
        if not isinstance(parsed, dict):
            return raw
        # Events of a streamed response carry the response so far.
        holder = parsed if isinstance(parsed.get("usage"), dict) else parsed.get("response")
        if not isinstance(holder, dict) or not isinstance(holder.get("usage"), dict):
            return raw
        if told.spent != Usage():
            holder["usage"]["latent"] = asdict(told.spent)
        if told.choices:
            for choice in holder["choices"]:
                choice["latent"] = told.choices[choice["index"]]
        # Spelled as vLLM spells it, so that nothing else of the body changes.
        return json.dumps(parsed, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (ValueError, LookupError, RecursionError):
        return raw
