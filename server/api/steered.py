"""The layer around vLLM's app.

Owns what happens to a request between the client and vLLM's handlers: the effort is taken off the model's
name on every route, and on those that may be steered the options are read and stripped, the call travels in
a context variable, and every answer says in its headers what ran and why. What vLLM refuses by itself, such
as a body that is no JSON, reaches it as it came. Knows nothing of how steering decides, and never holds back
a streamed answer.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from opentelemetry.trace import INVALID_SPAN, Span
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memory.episode import TENANT
from model.engine import Usage
from model.engine_time import EngineTime, engine_time
from server.api.auth import access_of
from server.api.errors import response_of
from server.api.options import (
    BATCH,
    COMPLETIONS,
    MESSAGES,
    RESPONSES,
    STEERED_PATHS,
    read_options,
    without_suffix,
)
from server.api.requests import REQUEST_ID
from server.api.scopes import is_public
from server.api.usage import Told, with_usage
from server.errors import GatewayError, InvalidRequestError
from server.gateway import Gateway, Readiness
from server.steering.outcome import HEADERS as TOLD
from server.steering.outcome import Outcome
from server.steering.prompt import SteeringRejectedError
from server.steering.request import SteeringCall, current_call
from server.tracing import described, evaluated, failed

REJECTED = Outcome(mode="plain", reason="rejected")
FAILED = Outcome(mode="plain", reason="failed")
NOT_READY = Outcome(mode="plain", reason="not-ready")
NOT_STEERED = Outcome(mode="plain", reason="completions-not-steered")
EFFORT_NONE = Outcome(mode="plain", reason="effort-none")
CLIENT_LEFT = Outcome(mode="plain", reason="client-left")
"""Nobody waits for this answer: vLLM ends what it was doing, steering included, and answers nothing."""
NOT_REACHED = Outcome(mode="plain", reason="not-rendered-as-chat")
"""vLLM answered without rendering a chat, so that the hook never saw the request."""
MIXED = "mixed"
"""In a header, where the conversations of a batch differ."""


NOT_TOLD: Span = INVALID_SPAN
"""Where nobody takes spans."""
MOST_VALUES, MOST_VALUES_OF_BATCHES = 10_000, 50_000
"""Values of a body, beside one for each token of the context."""
TOKENS = frozenset(
    {
        "prompt",
        "input",
        "tokens",
        "token_ids",
        "logit_bias",
        "allowed_token_ids",
        "stop_token_ids",
        "logprob_token_ids",
        "label_token_ids",
        "query",
        "items",
    }
)
"""Fields whose numbers are tokens."""
_LONGEST_NAME = 128
"""Of a model, on a span: a client may have written anything there."""
_PREFIX = "x-latent-"
HEADERS = tuple(_PREFIX + name for name in TOLD)
"""What an answer may say of its steering."""


class SteeredRoutes:
    """ASGI app that carries a `SteeringCall` through vLLM's handlers."""

    def __init__(self, app: ASGIApp, readiness: Readiness) -> None:
        self.app = app
        self._readiness = readiness

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # No route that is open to everybody reads a body: nobody without the key makes us hold one.
        if scope["type"] != "http" or scope["method"] != "POST" or is_public(scope["path"]):
            return await self.app(scope, receive, send)
        path, started = scope["path"], time.monotonic()
        call: SteeringCall | None = None
        tenant, status, told = TENANT, 0, NOT_TOLD

        def describe(found: int) -> dict[str, str]:
            nonlocal status
            status, said = found, []
            for each in [call] if call is None else call.conversations:
                outcome = _outcome(found, each, path)
                said.append(_described(outcome, each))
                self._count(outcome, each, started, tenant)
                if outcome.reward_after is not None:
                    evaluated("reward", outcome.reward_after, latentevolve__before=outcome.reward_before)
            common = _common(said)
            if told.is_recording():
                _tell(told, found, common)
            return common

        if path in STEERED_PATHS:
            send = _with_headers(send, describe)
        try:
            gateway = self._readiness.require()
            tenant = access_of(scope).tenant
            raw = await _read(receive) if _is_json(scope) else None
            body = rewritten = None if raw is None else _object(raw)
            if body is not None:
                _check_size(body, path, gateway.engine.max_model_len)
            if body is not None and path in STEERED_PATHS:
                options, rewritten = read_options(body, path, gateway.settings, gateway.served())
                options = replace(options, tenant=tenant)
                if path == RESPONSES and tenant != TENANT:
                    rewritten = _unstored(rewritten)
                call = SteeringCall(options, batch=[] if path == BATCH else None)
            elif body is not None:
                rewritten = without_suffix(body, gateway.served())
        except ClientDisconnect:
            return None
        except (GatewayError, SteeringRejectedError) as error:
            return await response_of(error, path)(scope, receive, send)
        if rewritten is not body:
            raw = json.dumps(rewritten).encode()
        if raw is not None:
            scope, receive = _sized(scope, len(raw)), _replay(raw, receive)
        if call is None:
            return await self.app(scope, receive, send)
        if call.options.effort != "none":
            scope = _unnamed(scope)
        if path not in (COMPLETIONS, MESSAGES):
            send = with_usage(send, partial(_told, call))
        # Completions have no chat to steer, so that vLLM's hook does not get to see the call.
        token = current_call.set(None if path == COMPLETIONS else call)
        clock = EngineTime()
        timing = engine_time.set(clock)
        try:
            with _spanned(gateway, scope, rewritten) as told, gateway.steering.explorer.client():
                await self.app(scope, _watched(receive, call), send)
                if status < 400 and clock.used and not call.left:
                    overhead_s = time.monotonic() - started - clock.seconds
                    gateway.metrics.overhead.labels(call.options.effort).observe(max(0.0, overhead_s))
                if status >= 400:  # vLLM has refused what the hook had taken
                    for each in call.conversations:
                        gateway.steering.explorer.withdraw(each.trace_id)
        except asyncio.CancelledError:
            if status == 0:  # nobody waits for an answer any more
                for each in call.conversations:
                    self._count(each.outcome or CLIENT_LEFT, each, started, tenant)
            raise
        finally:
            engine_time.reset(timing)
            current_call.reset(token)

    def _count(self, outcome: Outcome, call: SteeringCall | None, started: float, tenant: str) -> None:
        if self._readiness.gateway is not None:
            effort = call.options.effort if call is not None else "none"
            self._readiness.gateway.metrics.count(effort, outcome, time.monotonic() - started, tenant)


def _spanned(gateway: Gateway, scope: Scope, body: Mapping[str, Any] | None) -> AbstractContextManager[Span]:
    """Return the span of a request, by the conventions for generative models."""
    if not gateway.tracing.on:
        return nullcontext(NOT_TOLD)
    body = body or {}
    operation = "text_completion" if scope["path"] == COMPLETIONS else "chat"
    model = body.get("model") or gateway.settings.served_model_name or gateway.settings.model
    attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": f"{model}"[:_LONGEST_NAME],
        "http.request.method": scope["method"],
        "url.path": scope["path"],
    }
    name = f"{operation} {attributes['gen_ai.request.model']}"
    return gateway.tracing.request(name, Headers(scope=scope), attributes | described(body))


def _tell(told: Span, status: int, said: Mapping[str, str]) -> None:
    """Say on the span of a request what its answer's headers do."""
    told.set_attribute("http.response.status_code", status)
    if status >= 500:
        failed(told, f"{status}")
    names = {"trace": "trace_id", "reward-before": None, "reward-after": None}
    for name, value in said.items():
        if attribute := names.get(name, name):
            told.set_attribute(f"latentevolve.{attribute}", value)


def _is_json(scope: Scope) -> bool:
    """Return whether vLLM reads the body as JSON; it refuses others, or they are uploads."""
    return Headers(scope=scope).get("content-type", "").lower().partition(";")[0] == "application/json"


def _object(raw: bytes) -> dict[str, Any] | None:
    """Return the JSON object that a body is, None for what vLLM will refuse."""
    try:
        parsed = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _check_size(body: dict[str, Any], path: str, context: int) -> None:
    """Refuse what would hold up everybody: pydantic makes several errors for each wrong value of a union.

    No conversation that a context of so many tokens takes has more parts than that. Numbers count, too, but
    where they may be tokens.

    Raises:
        InvalidRequestError: it has too many values.
    """
    most = context + (MOST_VALUES_OF_BATCHES if path == BATCH else MOST_VALUES)
    tokens = TOKENS - {"input"} if path == RESPONSES else TOKENS
    count, left = 0, [(value, name in tokens) for name, value in body.items()]
    while left:
        value, free = left.pop()
        count += not (free and isinstance(value, int | float))
        if count > most:
            raise InvalidRequestError(
                f"the body has more than {most} values beside tokens, for a context of {context}", "body"
            )
        if isinstance(value, dict):
            left += [(each, free or name in tokens) for name, each in value.items()]
        elif isinstance(value, list):
            left += [(each, free) for each in value]


async def _read(receive: Receive) -> bytes:
    chunks = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunks += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(chunks)


def _unstored(body: dict[str, Any]) -> dict[str, Any]:
    """Return the body of a response that vLLM does not store: its store knows no tenants.

    Raises:
        InvalidRequestError: it goes on from a stored one.
    """
    if body.get("previous_response_id") is not None:
        raise InvalidRequestError(
            "responses of this tenant are not stored: send the whole conversation", "previous_response_id"
        )
    return {**body, "store": False}


def _sized(scope: Scope, length: int) -> Scope:
    headers = [(k, v) for k, v in scope["headers"] if k not in (b"content-length", b"transfer-encoding")]
    return {**scope, "headers": [*headers, (b"content-length", str(length).encode())]}


def _unnamed(scope: Scope) -> Scope:
    """Return the scope without the client's request id, which vLLM would name the answer by."""
    return {**scope, "headers": [(k, v) for k, v in scope["headers"] if k.lower() != REQUEST_ID.encode()]}


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


def _watched(receive: Receive, call: SteeringCall) -> Receive:
    """Return a `receive` that tells the call when the client has gone."""

    async def watched() -> Message:
        message = await receive()
        if message["type"] == "http.disconnect":
            call.leave()
        return message

    return watched


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
    if call.left:
        return CLIENT_LEFT
    return EFFORT_NONE if call.options.effort == "none" else NOT_REACHED


def _told(call: SteeringCall) -> Told:
    """Return what the body tells of the work, and in a steered batch of each conversation."""
    spent = Usage()
    for each in call.conversations:
        if each.outcome is not None:
            spent += each.outcome.usage
    if call.batch is None or not any(each.traced for each in call.batch):
        return Told(spent)
    return Told(
        spent,
        [
            {
                name.replace("-", "_"): value
                for name, value in _described(each.outcome or NOT_REACHED, each).items()
            }
            for each in call.batch
        ],
    )


def _described(outcome: Outcome, call: SteeringCall | None) -> dict[str, str]:
    """Return what an answer says of one conversation, by names of `TOLD`."""
    if call is None:
        return outcome.headers("none", None)
    return outcome.headers(call.options.effort, call.trace_id if call.traced else None)


def _common(said: list[dict[str, str]]) -> dict[str, str]:
    """Return what all conversations have in common; where they differ, `mixed`."""
    names = [name for name in TOLD if any(name in one for one in said)]
    values = {name: {one.get(name) for one in said} for name in names}
    return {name: str(held.pop()) if len(held) == 1 else MIXED for name, held in values.items()}


def _with_headers(send: Send, describe: Callable[[int], Mapping[str, str]]) -> Send:
    async def send_described(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in describe(message["status"]).items():
                headers[_PREFIX + name] = value
        await send(message)

    return send_described
