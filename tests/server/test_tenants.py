"""The parts that each tenant has of its own."""

from types import SimpleNamespace
from typing import Any, cast

from memory.tenants import partition
from server.tenants import Parts, Tenants


async def test_a_change_is_looked_at_by_the_tenant_whose_it_is() -> None:
    looked: list[str] = []

    async def build(tenant: str) -> Parts:
        prior = cast("Any", SimpleNamespace(poke=lambda: looked.append(tenant)))
        nothing = cast("Any", None)
        return Parts(tenant, nothing, nothing, prior, nothing)

    tenants = Tenants(build)
    for tenant in ("default", "shop", "desk"):
        await tenants.of(tenant)
    for tenant in ("shop", "default", "nobody"):
        tenants.changed(partition("space", tenant))
    assert looked == ["shop", "default"]
    tenants.changed(None)  # some may have been missed
    assert sorted(looked[2:]) == ["default", "desk", "shop"]
