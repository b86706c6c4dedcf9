"""Errors of the gateway's own, in the shape of the route that was asked.

Owns the translation of exceptions into responses: OpenAI's shape, and Anthropic's on its routes, with
vLLM's types and numeric codes. An unknown exception becomes a generic 500 that names the request id and
nothing from inside. What vLLM's app answers is its own.
"""

import json
import logging
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from memory.api_keys import ApiKeyRejectedError, UnknownApiKeyError
from memory.archive import ArchiveError, OtherSpaceError
from memory.database import StateUnavailableError
from memory.episode import LatentMemoryError, StoreUnavailableError
from memory.free_space import NoRoomError
from memory.night import NightRunningError, NightStateError, UnknownNightError
from memory.registry import RegistryError
from model.engine import (
    EngineDeadError,
    EngineError,
    PlacementError,
    PromptRejectedError,
    PromptTooLongError,
    UnsupportedError,
)
from server.errors import GatewayError, TooManyRequestsError, UnauthorizedError
from server.log import current_request_id
from server.steering.prompt import SteeringRejectedError

logger = logging.getLogger(__name__)

ANTHROPIC_PATHS = frozenset({"/v1/messages", "/v1/messages/count_tokens"})
"""Routes whose errors have Anthropic's shape."""

_KINDS = {
    400: "BadRequestError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    409: "ConflictError",
    503: "ServiceUnavailableError",
}


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    """The field of the request that it is about."""
    code: int
    """The status."""


class ErrorResponse(BaseModel):
    """An error in OpenAI's shape."""

    error: ErrorDetail


_MEANINGS = {
    400: "The request asks for nothing that can be done; the error names the field.",
    401: "No API key, or a wrong one.",
    403: "The API key may not do this; the error names the scope.",
    404: "There is no such thing.",
    409: "It contradicts what there is.",
    413: "The body is longer than the gateway reads.",
    429: "The API key has made too many requests lately; `Retry-After` says when to come again.",
    503: "The server is starting or ending, or something that the answer needs is away.",
    507: "The disk is too full to write.",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of errors: those that every route has, and some more."""
    return {
        status: {"model": ErrorResponse, "description": _MEANINGS[status]}
        for status in sorted({400, 401, 403, 429, 503, *statuses})
    }


class _Escaped(JSONResponse):
    """JSON in ASCII: an error may repeat what a client sent, and UTF-8 has no lone surrogates."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode()


class _Fault(NamedTuple):
    status: int
    message: str
    param: str | None = None
    kind: str | None = None
    headers: dict[str, str] | None = None


def response_of(error: Exception, path: str) -> JSONResponse:
    """Return the response that says `error` on the route `path`; one nobody foresaw is logged, not shown."""
    fault = _fault(error)
    kind = fault.kind or _KINDS.get(
        fault.status, "InternalServerError" if fault.status >= 500 else "BadRequestError"
    )
    body: dict[str, Any]
    if path in ANTHROPIC_PATHS:
        body = {"type": "error", "error": {"type": kind, "message": fault.message}}
    else:
        body = {"error": {"message": fault.message, "type": kind, "param": fault.param, "code": fault.status}}
    return _Escaped(body, fault.status, fault.headers)


def _fault(error: Exception) -> _Fault:
    match error:
        case GatewayError():
            return _Fault(error.status, str(error), error.param, error.kind, _headers(error))
        case SteeringRejectedError():
            return _Fault(400, str(error), error.param)
        case PromptTooLongError() | PromptRejectedError():
            return _Fault(400, str(error), "messages")
        case PlacementError():  # a text, where the model has no chat template to render it with
            return _Fault(400, str(error))
        case UnsupportedError():
            return _Fault(400, str(error), "latent.search")
        case EngineDeadError():
            return _Fault(503, "the engine is gone; see the server's log")
        case ApiKeyRejectedError():
            return _Fault(400, str(error), error.param)
        case UnknownApiKeyError():
            return _Fault(404, str(error), "key_id")
        case OtherSpaceError():
            return _Fault(409, str(error), "space")
        case ArchiveError():
            return _Fault(400, str(error))
        case NoRoomError():
            return _Fault(507, str(error), kind="InsufficientStorageError")
        case StoreUnavailableError():
            return _Fault(503, f"the episode store does not answer: {error}")
        case StateUnavailableError():
            return _Fault(503, f"the state does not answer: {error}")
        case NightRunningError():
            return _Fault(409, f"{error}; one night at a time")
        case NightStateError():
            return _Fault(409, str(error), "night_id")
        case UnknownNightError():
            return _Fault(404, str(error), "night_id")
        case RegistryError():
            return _Fault(409, str(error), "version")
        case RequestValidationError():
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
            if first["type"] == "json_invalid":  # whose place is a number of characters
                place = "body"
            return _Fault(400, f"{place}: {first['msg']}", place)
        case HTTPException():
            return _Fault(error.status_code, str(error.detail))
    request_id = current_request_id.get()
    logger.error("unforeseen error in request %s", request_id, exc_info=error)
    return _Fault(500, f"internal error; the server's log has it under request id {request_id}")


def _headers(error: GatewayError) -> dict[str, str] | None:
    match error:
        case UnauthorizedError():
            return {"www-authenticate": "Bearer"}
        case TooManyRequestsError():
            return {"retry-after": str(error.retry_after_s)}
    return None


async def _answer(request: Request, error: Exception) -> JSONResponse:
    response = response_of(error, request.scope["path"])
    if response.status_code == 405:  # the error itself knows the methods of one route only
        response.headers["allow"] = ", ".join(sorted(_methods(request)))
    return response


def _methods(request: Request) -> set[str]:
    """Return the methods that our routes have for the request's path."""
    routes = (route for route in request.app.routes if isinstance(route, Route))
    fitting = (route.methods for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    return {method for methods in fitting for method in methods or ()}


def install_on_gateway(app: FastAPI) -> None:
    """Answer every foreseen error of the gateway's own routes."""
    for kind in (GatewayError, SteeringRejectedError, EngineError, LatentMemoryError):
        app.add_exception_handler(kind, _answer)
    app.add_exception_handler(RequestValidationError, _answer)
    app.add_exception_handler(HTTPException, _answer)
