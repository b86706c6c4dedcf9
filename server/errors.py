"""What the gateway refuses, and how it says so.

Owns the error tree of the server, with the HTTP status of each. Knows neither FastAPI nor vLLM.
"""


class GatewayError(Exception):
    """Base of what the gateway answers with an error of its own.

    GatewayError
    ├── InvalidRequestError    400: what was asked for is nothing that can be done
    ├── UnauthorizedError      401: no API key, or a wrong one
    ├── ForbiddenError         403: an API key that may not do this
    ├── UnknownModelError      404: the model, or the effort after its colon, is not served
    ├── NotFoundError          404: no such trace, prior or night
    ├── ConflictError          409: it says something else than what was said before
    ├── BodyTooLargeError      413
    ├── TooManyRequestsError   429: the API key's rate limit
    └── UnavailableError       503
        ├── NotReadyError          the gateway is still starting, or has failed to
        └── QueueUnreachableError  the broker of the nights does not answer

    `param` names the request's field. What steering, engine and memory raise is translated in
    server/api/errors.py.
    """

    status = 500
    kind = "InternalServerError"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidRequestError(GatewayError):
    """What was asked for is nothing that can be done."""

    status = 400
    kind = "BadRequestError"


class UnauthorizedError(GatewayError):
    """No API key, or a wrong one."""

    status = 401
    kind = "AuthenticationError"


class ForbiddenError(GatewayError):
    """An API key that may not do this, or a machine that may not without one."""

    status = 403
    kind = "PermissionDeniedError"


class UnknownModelError(GatewayError):
    """The model, or the effort after its colon, is not served."""

    status = 404
    kind = "NotFoundError"


class NotFoundError(GatewayError):
    """No such trace, prior or night."""

    status = 404
    kind = "NotFoundError"


class ConflictError(GatewayError):
    """It says something else than what was said before."""

    status = 409
    kind = "ConflictError"


class BodyTooLargeError(GatewayError):
    """The body is longer than the gateway reads."""

    status = 413
    kind = "RequestEntityTooLargeError"


class TooManyRequestsError(GatewayError):
    """An API key has made more requests than its rate limit lets it."""

    status = 429
    kind = "RateLimitError"

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnavailableError(GatewayError):
    """Something the answer needs is not there just now."""

    status = 503
    kind = "ServiceUnavailableError"


class NotReadyError(UnavailableError):
    """The gateway is still starting, or has failed to."""


class QueueUnreachableError(UnavailableError):
    """The broker of the nights does not answer."""
