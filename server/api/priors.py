"""GET /v1/priors, GET /v1/priors/{version}, POST /v1/priors/{version}/activate."""

import asyncio
import re
from typing import Any

from fastapi import APIRouter

from memory.registry import UnknownVersionError
from server.api.deps import GatewayDep
from server.errors import NotFoundError
from server.gateway import Gateway

router = APIRouter(prefix="/v1/priors", tags=["priors"])

_VERSION = re.compile(r"v[1-9][0-9]{0,8}")


@router.get("")
async def versions(gateway: GatewayDep) -> dict[str, Any]:
    """Return the active version and every version's manifest."""
    active, manifests = await asyncio.to_thread(
        lambda: (gateway.registry.active(), gateway.registry.versions())
    )
    return {"active": active, "versions": [_summary(manifest) for manifest in manifests]}


@router.get("/{version}")
async def version(gateway: GatewayDep, version: str) -> dict[str, Any]:
    """Return one version's whole manifest."""
    return await asyncio.to_thread(_manifest, gateway, version)


@router.post("/{version}/activate")
async def activate(gateway: GatewayDep, version: str) -> dict[str, Any]:
    """Make a version the active one, `none` for no prior. Requests in flight finish on theirs."""
    wanted = None if version == "none" else version
    try:
        await asyncio.to_thread(gateway.registry.activate, wanted)
    except UnknownVersionError:
        raise _unknown(version) from None
    await gateway.prior.refresh()
    return {"active": wanted}


def _manifest(gateway: Gateway, version: str) -> dict[str, Any]:
    if _VERSION.fullmatch(version):
        for manifest in gateway.registry.versions():
            if manifest["version"] == version:
                return manifest
    raise _unknown(version)


def _unknown(version: str) -> NotFoundError:
    return NotFoundError(f"no prior {version!r} in this space; GET /v1/priors lists them", "version")


def _summary(manifest: dict[str, Any]) -> dict[str, Any]:
    """Leave out the episodes, which may be thousands."""
    summary = {name: value for name, value in manifest.items() if name != "episode_ids"}
    return {**summary, "episodes": len(manifest.get("episode_ids", ()))}
