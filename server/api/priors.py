"""GET /v1/priors, GET /v1/priors/{version}, POST /v1/priors/{version}/activate, POST /v1/priors/release."""

import asyncio
import re
from typing import Any

from fastapi import APIRouter

from memory.registry import UnknownVersionError
from server.api.deps import GatewayDep
from server.errors import NotFoundError
from server.gateway import Gateway

router = APIRouter(prefix="/v1/priors", tags=["priors"])

_LONG = frozenset({"labels", "episode_ids", "learned", "trainings"})
_VERSION = re.compile(r"v[1-9][0-9]{0,8}")


@router.get("")
async def versions(gateway: GatewayDep) -> dict[str, Any]:
    """Return the active version, whether it is pinned, and every version's manifest."""
    registry = gateway.registry
    active, pinned, manifests = await asyncio.to_thread(
        lambda: (registry.active(), registry.pinned(), registry.versions())
    )
    return {"active": active, "pinned": pinned, "versions": [_summary(manifest) for manifest in manifests]}


@router.post("/release")
async def release(gateway: GatewayDep) -> dict[str, Any]:
    """Let nights choose again what is active; until then what is active stays so."""
    await asyncio.to_thread(gateway.registry.release)
    return {"active": await asyncio.to_thread(gateway.registry.active), "pinned": False}


@router.get("/{version}")
async def version(gateway: GatewayDep, version: str) -> dict[str, Any]:
    """Return one version's whole manifest."""
    return await asyncio.to_thread(_manifest, gateway, version)


@router.post("/{version}/activate")
async def activate(gateway: GatewayDep, version: str) -> dict[str, Any]:
    """Make a version the active one, `none` for no prior; nights leave it so until it is released.

    Requests in flight finish on theirs.
    """
    wanted = None if version == "none" else version
    try:
        await asyncio.to_thread(gateway.registry.activate, wanted, pinned=True)
    except UnknownVersionError:
        raise _unknown(version) from None
    await gateway.prior.refresh()
    return {"active": wanted, "pinned": True}


def _manifest(gateway: Gateway, version: str) -> dict[str, Any]:
    if _VERSION.fullmatch(version):
        for manifest in gateway.registry.versions():
            if manifest["version"] == version:
                return manifest
    raise _unknown(version)


def _unknown(version: str) -> NotFoundError:
    return NotFoundError(f"no prior {version!r} in this space; GET /v1/priors lists them", "version")


def _summary(manifest: dict[str, Any]) -> dict[str, Any]:
    """Leave out the lists of episodes and prompts, which may be thousands."""
    summary = {name: value for name, value in manifest.items() if name not in _LONG}
    evidence = [
        {name: value for name, value in found.items() if name != "differences"}
        for found in manifest.get("evidence", ())
    ]
    learned = manifest.get("labels", manifest.get("episode_ids", ()))  # an earlier build had no labels
    return {**summary, "evidence": evidence, "episodes": len(learned)}
