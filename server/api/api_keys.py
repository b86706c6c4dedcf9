"""Routes under /v1/keys: API keys, made, listed, rotated and revoked.

An admin sees and makes the keys of its own tenant; one of the default tenant those of all.
"""

import asyncio
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from memory.api_keys import ApiKey, Scope, UnknownApiKeyError
from server.access import Access
from server.api.deps import AccessDep, GatewayDep
from server.api.errors import refusals
from server.api.memory import Stamp, Time
from server.errors import ForbiddenError
from server.gateway import Gateway

router = APIRouter(prefix="/v1/keys", tags=["keys"])


class NewKey(BaseModel):
    """A key to be made."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="What people know it by.")
    scopes: list[Scope] = Field(description="What it may do; `admin` is all of it.")
    tenant: str | None = Field(None, description="Whose memory it works on; default: yours.")
    rate_limit: str | None = Field(
        None, description="Most requests per second, minute, hour or day, such as `60/minute`."
    )
    expires_at: Time | None = Field(
        None, description="From when on it does not work; ISO 8601, without a zone UTC."
    )


class KeyRead(BaseModel):
    """A key without its secret."""

    id: str
    name: str
    tenant: str
    scopes: list[Scope]
    rate_limit: str | None
    created_at: Stamp
    expires_at: Stamp | None
    revoked_at: Stamp | None


class KeyWithSecret(KeyRead):
    """A key as it is shown once."""

    secret: str = Field(description="What clients send; nobody can tell it later.")


class KeyList(BaseModel):
    """Keys, newest first, revoked ones included."""

    object: str = "list"
    data: list[KeyRead]


@router.post("", status_code=201, responses=refusals(507))
async def create(gateway: GatewayDep, access: AccessDep, asked: NewKey) -> KeyWithSecret:
    """Make a key; it works at once."""
    tenant = access.tenant if asked.tenant is None else asked.tenant
    if tenant != access.tenant and not access.operates:
        raise ForbiddenError(f"this API key makes keys of tenant {access.tenant} only", "tenant")
    key, secret = await asyncio.to_thread(
        gateway.doorman.keys.create,
        asked.name,
        asked.scopes,
        tenant=tenant,
        rate_limit=asked.rate_limit,
        expires_at=asked.expires_at,
    )
    return _shown(key, secret)


@router.get("", responses=refusals())
async def keys(gateway: GatewayDep, access: AccessDep) -> KeyList:
    """Return the keys of your tenant; to the default tenant's admins all."""
    found = await asyncio.to_thread(gateway.doorman.keys.all, None if access.operates else access.tenant)
    return KeyList(data=[KeyRead.model_validate(key.to_json()) for key in found])


@router.get("/{key_id}", responses=refusals(404))
async def key(gateway: GatewayDep, access: AccessDep, key_id: str) -> KeyRead:
    """Return one key."""
    return KeyRead.model_validate((await _own(gateway, access, key_id)).to_json())


@router.post("/{key_id}/rotate", responses=refusals(404, 507))
async def rotate(gateway: GatewayDep, access: AccessDep, key_id: str) -> KeyWithSecret:
    """Give a key a new secret; the old one is refused within seconds, everywhere."""
    await _own(gateway, access, key_id)
    return _shown(*await asyncio.to_thread(gateway.doorman.keys.rotate, key_id))


@router.post("/{key_id}/revoke", responses=refusals(404, 507))
async def revoke(gateway: GatewayDep, access: AccessDep, key_id: str) -> KeyRead:
    """Let a key work no more: it is refused within seconds, everywhere."""
    await _own(gateway, access, key_id)
    revoked = await asyncio.to_thread(gateway.doorman.keys.revoke, key_id)
    return KeyRead.model_validate(revoked.to_json())


async def _own(gateway: Gateway, access: Access, key_id: str) -> ApiKey:
    """Return a key that whoever asks may see.

    Raises:
        UnknownApiKeyError: there is none.
    """
    found = await asyncio.to_thread(gateway.doorman.keys.get, key_id)
    if found is None or not (access.operates or found.tenant == access.tenant):
        raise UnknownApiKeyError(f"there is no API key {key_id!a}")
    return found


def _shown(key: ApiKey, secret: str) -> KeyWithSecret:
    shown: dict[str, Any] = key.to_json() | {"secret": secret}
    return KeyWithSecret.model_validate(shown)
