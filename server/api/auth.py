"""Who may ask: API keys, scopes and rate limits, before any route sees a request.

Owns how a token is sent and how refusals are said. What each route asks for is `server/api/scopes.py`'s, who
has what `server/access.py`'s.
"""

import ipaddress
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from config.loopback import is_loopback
from config.settings import Settings
from memory.episode import LatentMemoryError
from model.engine import cache_salt
from server.access import NOBODY, OPERATOR, Access, Doorman, operators_digest
from server.api.errors import response_of
from server.api.scopes import rule_of
from server.errors import ForbiddenError, GatewayError, NotReadyError, UnauthorizedError
from server.gateway import Gateway, Readiness

ACCESS = "latentevolve.access"
"""Where a request's scope holds who asks; not there while the gateway is not."""


class Authentication:
    """ASGI middleware that lets requests pass that may."""

    def __init__(
        self, app: ASGIApp, readiness: Readiness, settings: Settings, origins: Collection[str] = ()
    ) -> None:
        """`origins` are those whose pages may use a server without keys, as of CORS."""
        self.app = app
        self._readiness = readiness
        self._open = settings.open_without_key
        self._operator = operators_digest(settings)
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        rule = rule_of(scope.get("method", "WEBSOCKET"), scope["path"])
        if rule is None:
            scope[ACCESS] = NOBODY
            await self.app(scope, receive, send)
            return
        try:
            access = await self._access(scope)
            if access is not None:
                scope[ACCESS] = access
                access.demand(rule.scope, everybody=rule.everybody)
        except (GatewayError, LatentMemoryError) as error:
            if scope["type"] == "websocket":
                await receive()
                await send({"type": "websocket.close", "code": 1008, "reason": str(error)[:120]})
                return
            await response_of(error, scope["path"])(scope, receive, send)
            return
        salt = cache_salt.set(access.cache_salt if access else None)
        try:
            await self.app(scope, receive, send)
        finally:
            cache_salt.reset(salt)

    async def _access(self, scope: Scope) -> Access | None:
        """Return who asks; None: nobody can be told before the gateway is there, which answers nothing.

        Raises:
            GatewayError, LatentMemoryError: it may not.
        """
        headers = Headers(scope=scope)
        token = _token(headers)
        gateway = self._readiness.gateway
        if gateway is None:
            if self._operator is not None and token is None:
                raise UnauthorizedError("send an API key as `Authorization: Bearer KEY`")
            return None
        doorman: Doorman = gateway.doorman
        access = await doorman.admit(token)
        if access is OPERATOR and not await doorman.asks_for_keys():
            if not self._open:
                _check_is_here(scope, headers)
            self._check_origin(headers)
        await doorman.count(access)
        return access

    def _check_origin(self, headers: Headers) -> None:
        """Raise ForbiddenError where a browser sends what another site's page has asked for.

        Browsers name the page's origin in whatever may change something, even if it may not read answers.
        """
        origin = headers.get("origin")
        own = origin is not None and origin.partition("://")[2] == headers.get("host")
        if origin is None or own or is_loopback(origin) or {origin, "*"} & self._origins:
            return
        raise ForbiddenError(
            f"this server has no API key, so pages of {origin!a} may not use it: make a key with "
            "`latentevolve keys create`, or allow the origin (--allowed-origins in LATENTEVOLVE_VLLM_ARGS)"
        )


async def operates(request: Request, gateway: Gateway) -> bool:
    """Return whether a public route is asked by whoever may see all tenants; a wrong key is like none."""
    try:
        return (await gateway.doorman.admit(_token(request.headers))).operates
    except (GatewayError, LatentMemoryError):
        return False


def access_of(scope: Scope) -> Access:
    """Return who asks.

    Raises:
        NotReadyError: the request came before anybody could tell.
    """
    access: Access | None = scope.get(ACCESS)
    if access is None:
        raise NotReadyError("the server has started this moment; ask again")
    return access


def _token(headers: Headers) -> str | None:
    """Return what is sent as a key: OpenAI's way, else Anthropic's."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key") or None


def _check_is_here(scope: Scope, headers: Headers) -> None:
    """Raise ForbiddenError unless this machine asks itself, by a name of its own.

    A page of a browser may reach this machine under any name that its owner lets point here.
    """
    client = scope.get("client")
    host = headers.get("host")
    if (client is None or _is_here(client[0])) and (host is None or is_loopback(f"http://{host}")):
        return
    raise ForbiddenError(
        "this server has no API key, so it answers its own machine only, as localhost: make a key there with "
        "`latentevolve keys create`, or set LATENTEVOLVE_API_KEY"
    )


def _is_here(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:  # a socket of this machine
        return not address
