"""What routes ask for.

Owns how a route gets at the running gateway.
"""

from typing import Annotated

from fastapi import Depends, Request

from server.gateway import Gateway, Readiness


# Not plain functions: those would each take a thread.
async def _readiness(request: Request) -> Readiness:
    readiness: Readiness = request.app.state.readiness
    return readiness


async def _gateway(request: Request) -> Gateway:
    return (await _readiness(request)).require()


ReadinessDep = Annotated[Readiness, Depends(_readiness)]
GatewayDep = Annotated[Gateway, Depends(_gateway)]
"""The running gateway; a 503 that says why when there is none."""
