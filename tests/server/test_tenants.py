"""The parts that each tenant has of its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from memory.tenants import partition
from server.tenants import Parts, Tenants

nothing = cast("Any", None)


async def test_a_change_is_looked_at_by_the_tenant_whose_it_is() -> None:
    looked: list[str] = []

    @asynccontextmanager
    async def build(tenant: str) -> AsyncIterator[Parts]:
        prior = cast("Any", SimpleNamespace(poke=lambda: looked.append(tenant)))
        yield Parts(tenant, nothing, nothing, prior, nothing)

    tenants = Tenants(build)
    for tenant in ("default", "shop", "desk"):
        await tenants.of(tenant)
    for tenant in ("shop", "default", "nobody"):
        tenants.changed(partition("space", tenant))
    assert looked == ["shop", "default"]
    tenants.changed(None)  # some may have been missed
    assert sorted(looked[2:]) == ["default", "desk", "shop"]


async def test_the_parts_of_tenants_that_are_gone_are_closed_and_open_again_when_asked_for() -> None:
    running: list[str] = []

    @asynccontextmanager
    async def build(tenant: str) -> AsyncIterator[Parts]:
        running.append(tenant)
        yield Parts(tenant, nothing, nothing, nothing, nothing)
        running.remove(tenant)

    tenants = Tenants(build)
    first = await tenants.of("default")
    await tenants.keep(["shop", "desk"])
    assert sorted(running) == ["default", "desk", "shop"]
    await tenants.keep(["desk"])
    assert sorted(running) == ["default", "desk"]
    assert await tenants.of("default") is first
    await tenants.of("shop")
    assert sorted(running) == ["default", "desk", "shop"]
    await tenants.close()
    assert running == []


async def test_one_tenant_that_fails_leaves_the_others_looked_after(caplog: pytest.LogCaptureFixture) -> None:
    running: list[str] = []

    @asynccontextmanager
    async def build(tenant: str) -> AsyncIterator[Parts]:
        if tenant == "bad":
            raise OSError("its folder is gone")
        running.append(tenant)
        yield Parts(tenant, nothing, nothing, nothing, nothing)
        running.remove(tenant)
        if tenant == "old":
            raise OSError("its folder is gone")

    tenants = Tenants(build)
    for tenant in ("old", "older"):
        await tenants.of(tenant)
    await tenants.keep(["bad", "shop"])
    assert running == ["shop"]
    assert [record.args for record in caplog.records] == [("old",), ("bad",)]
    await tenants.close()
