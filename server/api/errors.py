"""One shape for every error: OpenAI's, with vLLM's types and numeric codes.

Owns the translation of exceptions into responses. An unknown exception becomes a generic 500 that
names the request id and nothing from inside.
"""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware

from memory.episode import LatentMemoryError, StoreUnavailableError
from memory.free_space import NoRoomError
from memory.night import NightRunningError
from memory.registry import RegistryError
from model.engine import EngineDeadError, EngineError, PromptTooLongError, UnsupportedError
from server.errors import GatewayError
from server.log import current_request_id
from server.steering.call import SteeringRejectedError

logger = logging.getLogger(__name__)

_KINDS = {
    400: "BadRequestError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    503: "ServiceUnavailableError",
}


def error_response(
    status: int, message: str, kind: str | None = None, param: str | None = None
) -> JSONResponse:
    """Return an OpenAI-shaped error."""
    kind = kind or _KINDS.get(status, "InternalServerError" if status >= 500 else "BadRequestError")
    return JSONResponse(
        {"error": {"message": message, "type": kind, "param": param, "code": status}}, status_code=status
    )


def response_of(error: Exception) -> JSONResponse:
    """Return the response that says `error`; one nobody foresaw is logged and not shown."""
    match error:
        case GatewayError():
            response = error_response(error.status, str(error), error.kind, error.param)
            if error.status == 401:
                response.headers["www-authenticate"] = "Bearer"
            return response
        case SteeringRejectedError():
            return error_response(400, str(error), param=error.param)
        case PromptTooLongError():
            return error_response(400, str(error), param="messages")
        case UnsupportedError():
            return error_response(400, str(error), param="latent.refiner")
        case EngineDeadError():
            return error_response(503, "the engine is gone; see the server's log")
        case NoRoomError():
            return error_response(507, str(error), "InsufficientStorageError")
        case StoreUnavailableError():
            return error_response(503, f"the episode store does not answer: {error}")
        case NightRunningError():
            return error_response(409, f"{error}; one night at a time", "ConflictError")
        case RegistryError():
            return error_response(409, str(error), "ConflictError", "version")
        case RequestValidationError():
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
            return error_response(400, f"{place}: {first['msg']}", param=place)
        case HTTPException():
            return error_response(error.status_code, str(error.detail))
    request_id = current_request_id.get()
    logger.error("unforeseen error in request %s", request_id, exc_info=error)
    return error_response(500, f"internal error; the server's log has it under request id {request_id}")


async def _answer(_: Request, error: Exception) -> JSONResponse:
    return response_of(error)


def install_on_gateway(app: FastAPI) -> None:
    """Answer every foreseen error of the gateway's own routes in one shape."""
    for kind in (GatewayError, SteeringRejectedError, EngineError, LatentMemoryError):
        app.add_exception_handler(kind, _answer)
    app.add_exception_handler(RequestValidationError, _answer)
    app.add_exception_handler(HTTPException, _answer)


def install_on_inner(app: FastAPI) -> None:
    """Let vLLM's app name the field of what steering refuses; its own handlers would lose it.

    It has a handler for FastAPI's HTTPException, but none for Starlette's, which unknown routes raise.
    """
    # vLLM's app comes with its layers already built, and building them anew would lose its HTTP metrics.
    layer: Any = app.middleware_stack
    while layer is not None and not isinstance(layer, ExceptionMiddleware):
        layer = getattr(layer, "app", None)
    for kind in (SteeringRejectedError, EngineError, LatentMemoryError, HTTPException):
        (layer or app).add_exception_handler(kind, _answer)
