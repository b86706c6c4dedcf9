"""The layer around the routes that may be steered.

Owns what happens to a request between the client and vLLM's handlers: its options are read and
stripped, the call travels in a context variable, and every answer says in its headers what ran and
why. Knows nothing of how steering decides, and never holds back a streamed answer.
"""

import json
import time
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model.engine import Usage
from server.api.errors import response_of
from server.api.options import CHAT, COMPLETIONS, RESPONSES, STEERED_PATHS, read_options
from server.api.usage import with_usage
from server.errors import BodyRejectedError, BodyTooLargeError, GatewayError
from server.gateway import Readiness
from server.steering.call import Outcome, SteeringCall, SteeringRejectedError, current_call

MAX_BODY_BYTES = 64 * 2**20

REJECTED = Outcome(mode="plain", reason="rejected")
FAILED = Outcome(mode="plain", reason="failed")
NOT_READY = Outcome(mode="plain", reason="not-ready")
NOT_STEERED = Outcome(mode="plain", reason="completions-not-steered")
EFFORT_NONE = Outcome(mode="plain", reason="effort-none")
NOT_REACHED = Outcome(mode="plain", reason="not-rendered-as-chat")
"""vLLM answered without rendering a chat, so that the hook never saw the request."""


class SteeredRoutes:
    """ASGI middleware that carries a `SteeringCall` through vLLM's handlers."""

    def __init__(self, app: ASGIApp, readiness: Readiness) -> None:
        self.app = app
        self._readiness = readiness

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in STEERED_PATHS:
            return await self.app(scope, receive, send)
        path = scope["path"]
        call: SteeringCall | None = None
        started = time.monotonic()

        def describe(status: int) -> Outcome:
            outcome = _outcome(status, call, path)
            if self._readiness.gateway is not None:
                effort = call.options.effort if call is not None else "none"
                self._readiness.gateway.tally.count(effort, outcome, time.monotonic() - started)
            return outcome

        try:
            gateway = self._readiness.require()
            body = await _read(scope, receive)
            options, rewritten = read_options(body.parsed, path, gateway.settings, gateway.served())
        except ClientDisconnect:
            return None
        except (GatewayError, SteeringRejectedError) as error:
            return await response_of(error)(scope, receive, _with_headers(send, None, describe))
        call = SteeringCall(options)
        raw = body.raw if rewritten is body.parsed else json.dumps(rewritten).encode()
        if path in (CHAT, RESPONSES):
            send = with_usage(send, lambda: _spent(call))
        # Completions have no chat to steer, so that vLLM's hook does not get to see the call.
        token = current_call.set(None if path == COMPLETIONS else call)
        try:
            await self.app(
                _sized(scope, len(raw)), _replay(raw, receive), _with_headers(send, call, describe)
            )
        finally:
            current_call.reset(token)
            call.end()


class _Body:
    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        try:
            parsed = json.loads(raw)
        except (ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, json.JSONDecodeError) else "cannot be parsed"
            raise BodyRejectedError(f"the body is not JSON: {reason}", "body") from error
        if not isinstance(parsed, dict):
            raise BodyRejectedError("the body is not a JSON object", "body")
        self.parsed: dict[str, Any] = parsed


async def _read(scope: Scope, receive: Receive) -> _Body:
    too_large = BodyTooLargeError(f"the body is longer than {MAX_BODY_BYTES} bytes", "body")
    announced = Headers(scope=scope).get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced[:20]) > MAX_BODY_BYTES:
        raise too_large
    chunks = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunks += message.get("body", b"")
        if len(chunks) > MAX_BODY_BYTES:
            raise too_large
        if not message.get("more_body", False):
            return _Body(bytes(chunks))


def _sized(scope: Scope, length: int) -> Scope:
    headers = [(k, v) for k, v in scope["headers"] if k not in (b"content-length", b"transfer-encoding")]
    return {**scope, "headers": [*headers, (b"content-length", str(length).encode())]}


def _replay(raw: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the rewritten body once, then what the client does (disconnect)."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": raw, "more_body": False}

    return replay


def _outcome(status: int, call: SteeringCall | None, path: str) -> Outcome:
    if status == 503 and call is None:
        return NOT_READY
    if status >= 500:
        return FAILED
    if status >= 400 or call is None:
        return REJECTED
    if call.outcome is not None:
        return call.outcome
    if path == COMPLETIONS:
        return NOT_STEERED
    return EFFORT_NONE if call.options.effort == "none" else NOT_REACHED


def _spent(call: SteeringCall) -> Usage | None:
    """Return what refining spent, None when there was none."""
    usage = call.outcome.usage if call.outcome is not None else Usage()
    return None if usage == Usage() else usage


def _with_headers(send: Send, call: SteeringCall | None, describe: Callable[[int], Outcome]) -> Send:
    async def send_described(message: Message) -> None:
        if message["type"] == "http.response.start":
            outcome = describe(message["status"])
            headers = MutableHeaders(scope=message)
            headers["x-latent-mode"] = outcome.mode
            headers["x-latent-reason"] = outcome.reason
            headers["x-latent-effort"] = call.options.effort if call is not None else "none"
            headers["x-latent-prior"] = outcome.prior_version or "none"
            headers["x-latent-episodes"] = ",".join(outcome.episode_ids)
            headers["x-latent-trace"] = call.trace_id if call is not None and call.traced else "none"
            for name, reward in (("before", outcome.reward_before), ("after", outcome.reward_after)):
                if reward is not None:
                    headers[f"x-latent-reward-{name}"] = f"{reward:.4f}"
        await send(message)

    return send_described
