"""What routes ask for.

Owns how a route gets at the running gateway.
"""

from typing import Annotated

from fastapi import Depends, Request

from server.gateway import Gateway, Readiness


def _readiness(request: Request) -> Readiness:
    readiness: Readiness = request.app.state.readiness
    return readiness


def _gateway(request: Request) -> Gateway:
    return _readiness(request).require()


ReadinessDep = Annotated[Readiness, Depends(_readiness)]
GatewayDep = Annotated[Gateway, Depends(_gateway)]
"""The running gateway; a 503 that says why when there is none."""
