"""What routes ask for.

Owns how a route gets at the running gateway, at who asks, and at the trace of an answer.
"""

from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request

from memory.listing import Place
from server.access import Access
from server.api.auth import access_of
from server.errors import InvalidRequestError, NotFoundError
from server.gateway import Gateway, Readiness
from server.tenants import Parts


def trace_of(inference_id: str, param: str = "inference_id") -> str:
    """Return the id of the trace that ids of answers end in.

    Raises:
        NotFoundError: it is no such id.
    """
    try:
        return str(UUID(inference_id.removeprefix("chatcmpl-").removeprefix("resp_")))
    except ValueError:
        raise NotFoundError(
            f"no trace of {inference_id!a}: requests at effort none and completions leave none; of batches, "
            "and where a client names its requests itself, give the id that x-latent-trace says",
            param,
        ) from None


# Not plain functions: those would each take a thread.
async def _readiness(request: Request) -> Readiness:
    readiness: Readiness = request.app.state.readiness
    return readiness


async def _access(request: Request) -> Access:
    return access_of(request.scope)


async def _gateway(request: Request) -> Gateway:
    gateway = (await _readiness(request)).require()
    access_of(request.scope)
    return gateway


async def _own(request: Request) -> Parts:
    gateway = await _gateway(request)
    return await gateway.tenants.of(access_of(request.scope).tenant)


ReadinessDep = Annotated[Readiness, Depends(_readiness)]
AccessDep = Annotated[Access, Depends(_access)]
"""Who asks."""
GatewayDep = Annotated[Gateway, Depends(_gateway)]
"""The running gateway; a 503 that says why when there is none."""
OwnDep = Annotated[Parts, Depends(_own)]
"""Priors and nights of whoever asks."""


def place(cursor: str) -> Place:
    """Return where a page begins.

    Raises:
        InvalidRequestError: no page has given that cursor.
    """
    try:
        return Place.parse(cursor)
    except ValueError as error:
        raise InvalidRequestError(f"{error}; give next_cursor of the page before", "cursor") from None
