"""The active prior: swaps, pins, and versions that cannot be loaded."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import text

from memory.registry import WEIGHTS, PriorRegistry, UnknownVersionError
from memory.state import State
from server.steering.metrics import Metrics
from server.steering.priors import ActivePrior
from tests.tables import row


@pytest.fixture
def registry(tmp_path: Path, state: State) -> PriorRegistry:
    return PriorRegistry(tmp_path, "space", state)


@pytest.fixture
def collectors() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    with State.in_folder(tmp_path) as state:
        yield state


@pytest.fixture
def priors(registry: PriorRegistry, state: State, collectors: CollectorRegistry) -> ActivePrior:
    return ActivePrior(registry, state, poll_s=60.0, metrics=Metrics(collectors), kept=2)


def publish(registry: PriorRegistry) -> str:
    return registry.publish([row(np.zeros((2, 8)), np.eye(8), 0.5)], {})


async def swapped(priors: ActivePrior) -> None:
    for _ in range(1000):
        if priors.current() is not None:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("no prior was taken up")


async def test_pointer_is_followed_forward_back_and_to_none(
    registry: PriorRegistry, priors: ActivePrior
) -> None:
    first, second = publish(registry), publish(registry)
    assert priors.current() is None
    for version in (first, second, first, None):
        registry.activate(version, pinned=True)
        assert await priors.refresh()
        current = priors.current()
        assert (current.version if current else None) == version
        assert not await priors.refresh()


async def test_snapshot_survives_a_swap(registry: PriorRegistry, priors: ActivePrior) -> None:
    registry.activate(publish(registry), pinned=True)
    await priors.refresh()
    snapshot = priors.current()
    registry.activate(publish(registry), pinned=True)
    await priors.refresh()
    assert snapshot is not None
    assert snapshot.version == "v1"
    assert snapshot.predict(np.eye(8, dtype=np.float32)[0]).shape == (2, 8)


async def test_corrupt_version_keeps_the_old_one_and_is_counted_once(
    registry: PriorRegistry, priors: ActivePrior, collectors: CollectorRegistry
) -> None:
    good, bad = publish(registry), publish(registry)
    registry.activate(good, pinned=True)
    await priors.refresh()
    registry.activate(bad, pinned=True)
    weights = registry.root / bad / WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4])
    for _ in range(3):
        assert not await priors.refresh()
        assert priors.current().version == good
    assert collectors.get_sample_value("latentevolve_prior_swaps_total", {"result": "failed"}) == 1
    assert collectors.get_sample_value("latentevolve_active_prior", {"version": good}) == 1

    weights.write_bytes(whole)  # the copy was not complete yet
    assert await priors.refresh()
    assert priors.current().version == bad
    assert collectors.get_sample_value("latentevolve_active_prior", {"version": good}) is None


async def test_state_that_cannot_be_read_keeps_the_old_one(
    registry: PriorRegistry, priors: ActivePrior, state: State
) -> None:
    registry.activate(publish(registry), pinned=True)
    await priors.refresh()
    with state.write() as connection:
        connection.execute(text("ALTER TABLE labels RENAME TO gone"))
    assert not await priors.refresh()
    assert priors.current().version == "v1"


async def test_pinned_versions_are_loaded_once_and_the_oldest_let_go(
    registry: PriorRegistry, priors: ActivePrior
) -> None:
    versions = [publish(registry) for _ in range(3)]
    first = await priors.get(versions[0])
    assert await priors.get(versions[0]) is first
    for version in versions[1:]:
        await priors.get(version)
    assert await priors.get(versions[0]) is not first
    with pytest.raises(UnknownVersionError):
        await priors.get("v9")


def replaced(registry: PriorRegistry, version: str, base: float) -> None:
    """Put other weights under the name of a version, as a copy from another machine does."""
    elsewhere = registry.root.parent / "elsewhere"
    other = PriorRegistry(elsewhere, registry.space, State.in_folder(elsewhere))
    new = other.publish([row(np.full((2, 8), base), np.eye(8), 0.5)], {})
    assert new == version
    shutil.rmtree(registry.root / version)
    shutil.move(other.root / new, registry.root / version)
    shutil.rmtree(elsewhere)


async def test_version_replaced_under_its_name_and_activated_again_serves_its_new_weights(
    registry: PriorRegistry, priors: ActivePrior
) -> None:
    key = np.eye(8, dtype=np.float32)[0]
    version = publish(registry)
    registry.activate(version, pinned=True)
    assert await priors.refresh()
    old = priors.current()
    assert not await priors.refresh()
    replaced(registry, version, 3.0)
    registry.activate(version, pinned=True)
    assert await priors.refresh()
    new = priors.current()
    assert old is not None
    assert new is not None
    assert (old.predict(key)[0, 0], new.predict(key)[0, 0]) == (0, 3)
    assert not await priors.refresh()


async def test_request_that_pins_a_replaced_version_gets_its_new_weights(
    registry: PriorRegistry, priors: ActivePrior
) -> None:
    version = publish(registry)
    old = await priors.get(version)
    replaced(registry, version, 3.0)
    new = await priors.get(version)
    assert new is not old
    assert new.predict(np.eye(8, dtype=np.float32)[0])[0, 0] == 3
    assert await priors.get(version) is new


async def test_poke_from_another_thread_swaps_at_once(registry: PriorRegistry, priors: ActivePrior) -> None:
    watching = asyncio.create_task(priors.watch())
    await asyncio.sleep(0.05)  # it now waits for a minute
    registry.activate(publish(registry), pinned=True)
    await asyncio.to_thread(priors.poke)
    await swapped(priors)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_polling_swaps_without_a_poke(
    registry: PriorRegistry, state: State, collectors: CollectorRegistry
) -> None:
    priors = ActivePrior(registry, state, poll_s=0.01, metrics=Metrics(collectors))
    watching = asyncio.create_task(priors.watch())
    registry.activate(publish(registry), pinned=True)
    await swapped(priors)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_rows_serve_when_their_evidence_says_so_and_until_it_says_otherwise(
    registry: PriorRegistry, state: State, priors: ActivePrior
) -> None:
    keys = np.eye(8, dtype=np.float32)
    version = registry.publish([row(np.zeros((2, 8)), keys[:4]), row(np.ones((2, 8)), keys[4:])], {})
    registry.activate(version)
    await priors.refresh()
    assert not priors.current().covers(keys[0])
    assert not priors.current().covers(keys[4])

    state.add_outcomes("space", "default", f"{version}/1", [(f"night {n}", 1.0) for n in range(20)], "night")
    assert await priors.refresh()
    assert not priors.current().covers(keys[0])
    assert priors.current().covers(keys[4])
    before = priors.current()

    state.add_outcomes("space", "default", f"{version}/1", [(f"day {n}", -1.0) for n in range(40)], "day")
    assert await priors.refresh()
    assert not priors.current().covers(keys[4])
    assert before.covers(keys[4])  # requests under way keep what they began with


async def test_what_an_operator_chose_speaks_whatever_the_evidence(
    registry: PriorRegistry, priors: ActivePrior
) -> None:
    version = publish(registry)
    registry.activate(version)
    await priors.refresh()
    key = np.eye(8, dtype=np.float32)[0]
    assert not priors.current().covers(key)
    assert (await priors.get(version)).covers(key)  # so does what a request names
    registry.activate(version, pinned=True)
    assert await priors.refresh()
    assert priors.current().covers(key)
    registry.release()
    assert await priors.refresh()
    assert not priors.current().covers(key)
