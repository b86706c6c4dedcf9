"""The outermost layer of a request: its id, and what happens when it breaks.

Owns the `x-request-id` header, the count of answers by status, and the last resort for exceptions. Knows
nothing of steering.
"""

import logging
import re
import uuid

from prometheus_client import CollectorRegistry, Counter
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import response_of
from server.api.scopes import is_public
from server.log import current_request_id

logger = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"
_ACCEPTABLE = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class RequestIds:
    """ASGI middleware that names each request and answers for exceptions that nobody caught."""

    def __init__(self, app: ASGIApp, *, registry: CollectorRegistry) -> None:
        self.app = app
        self._answers = Counter(
            "latentevolve_responses_total",
            "Answers of every route but those of health and metrics, by class of status: 2xx, 4xx, 5xx.",
            ["status"],
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        offered = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = offered if _ACCEPTABLE.fullmatch(offered) else uuid.uuid4().hex
        started = False

        async def send_named(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if not is_public(scope["path"]):
                    self._answers.labels(f"{message['status'] // 100}xx").inc()
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        token = current_request_id.set(request_id)
        try:
            await self.app(scope, receive, send_named)
        except Exception as error:
            if started:  # too late for another answer: the connection breaks, which clients notice
                logger.exception("the answer to request %s broke off", request_id)
                raise
            await response_of(error, scope["path"])(scope, receive, send_named)
        finally:
            current_request_id.reset(token)
