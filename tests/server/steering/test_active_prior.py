"""The active prior: swaps, pins, and versions that cannot be loaded."""

import asyncio
import logging
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import text

from memory.evidence import Evidence
from memory.prior import Prior
from memory.registry import WEIGHTS, PriorRegistry, UnknownVersionError
from memory.state import State
from server.steering.active_prior import ActivePrior
from server.steering.metrics import Metrics
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


async def test_whoever_sees_a_change_tells_others_once(
    registry: PriorRegistry, state: State, collectors: CollectorRegistry
) -> None:
    told = threading.Semaphore(0)
    priors = ActivePrior(registry, state, poll_s=0.05, metrics=Metrics(collectors), tell=told.release)
    for pinned in (True, False):
        registry.activate(publish(registry), pinned=pinned)
        await priors.refresh()
        assert await asyncio.to_thread(told.acquire, timeout=30)
        assert not await priors.refresh()
    assert not told.acquire(blocking=False)


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

    weights.write_bytes(whole)  # the copy was not complete yet
    assert await priors.refresh()
    assert priors.current().version == bad


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


LATENT = np.zeros((2, 8))
KEYS = np.eye(8, dtype=np.float32)


def note(state: State, row_id: str, *differences: float) -> None:
    """Note outcomes of a night."""
    known = len(state.outcomes("space", "default").get(row_id, ()))
    observed = [(f"night {known + n}", difference) for n, difference in enumerate(differences)]
    state.add_outcomes("space", "default", row_id, observed, "night")


async def test_what_the_day_observes_decides_at_once_here_and_at_the_next_look_elsewhere(
    registry: PriorRegistry, state: State, priors: ActivePrior, caplog: pytest.LogCaptureFixture
) -> None:
    registry.activate(publish(registry))
    elsewhere = ActivePrior(registry, state, poll_s=60.0, metrics=Metrics(CollectorRegistry()))
    await priors.refresh()
    await elsewhere.refresh()
    with caplog.at_level(logging.INFO):
        for number in range(7):
            assert not priors.current().covers(KEYS[0])
            await priors.observe(f"prompt {number}", {"v1/0": 1.0})
        assert priors.current().covers(KEYS[0])
        assert not elsewhere.current().covers(KEYS[0])
        assert await elsewhere.refresh()
        assert elsewhere.current().covers(KEYS[0])
        for number in range(7):
            await priors.observe(f"other {number}", {"v1/0": -1.0})
    assert not priors.current().covers(KEYS[0])
    assert priors.summary()["rows"]["v1/0"]["standing"] == "retired"
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("row v1/0")]
    assert [line.split(":")[0] for line in said] == ["row v1/0 serves"] * 2 + ["row v1/0 is retired"]
    assert "+1.00 on 7 prompts, e-value 28.7 for it" in said[0]


async def test_prompt_counts_once_however_often_it_is_asked(
    registry: PriorRegistry, state: State, priors: ActivePrior
) -> None:
    registry.activate(publish(registry))
    await priors.refresh()
    for _ in range(20):
        await priors.observe("one prompt", {"v1/0": 1.0})
    assert priors.summary()["rows"]["v1/0"]["n"] == 1
    assert not priors.current().covers(KEYS[0])


async def test_evidence_is_read_again_only_when_there_is_more_of_it(
    registry: PriorRegistry, state: State, priors: ActivePrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.activate(publish(registry))
    reads = []
    evidence = state.evidence

    def counted(prior: Prior) -> dict[str, Evidence]:
        reads.append(prior)
        return evidence(prior)

    monkeypatch.setattr(state, "evidence", counted)
    for _ in range(3):
        await priors.refresh()
    assert len(reads) == 1
    state.add_outcomes("space", "default", "v7/0", [("a prompt", 1.0)], "night")
    await priors.refresh()
    assert len(reads) == 1, "it is of another version's row"
    state.add_outcomes("space", "default", "v1/0", [("a prompt", 1.0)], "night")
    for _ in range(3):
        await priors.refresh()
    assert len(reads) == 2


async def test_a_row_that_learned_from_what_was_erased_serves_no_more_unless_it_is_pinned(
    registry: PriorRegistry, state: State, priors: ActivePrior
) -> None:
    version = publish(registry)
    registry.activate(version)
    note(state, "v1/0", *[1.0] * 20)
    await priors.refresh()
    assert priors.current().covers(KEYS[0])
    state.note_erasure("space", {"v1/0": True})
    assert await priors.refresh()
    assert not priors.current().covers(KEYS[0])
    assert priors.serving().comparisons(KEYS[0], "a prompt") == ()
    assert priors.summary()["rows"] == {}
    registry.activate(version, pinned=True)
    assert await priors.refresh()
    assert priors.current().covers(KEYS[0])
    assert priors.serving().comparisons(KEYS[0], "a prompt") == ()


async def compared(
    registry: PriorRegistry, state: State, priors: ActivePrior, prompt: str = "another", **standings: str
) -> list[tuple[str, str | None]]:
    """Return what a prompt can measure of rows of several nights that cover it, by the rows' standings."""
    rows = []
    for version in standings:
        rows.append(row(LATENT, KEYS[:1], id=f"{version}/0"))
    manifest = {"learned": {row.id: [f"taught {row.id}"] for row in rows}}
    registry.activate(registry.publish(rows, manifest))
    for version, standing in standings.items():
        outcomes = {"serves": (1.0,) * 7, "retired": (-1.0,) * 7, "trial": (1.0,)}[standing]
        note(state, f"{version}/0", *outcomes)
    await priors.refresh()
    serving = priors.serving()
    assert serving is not None
    return [
        (one.row.id, one.baseline.id if one.baseline else None)
        for one in serving.comparisons(KEYS[0], prompt)
    ]


@pytest.mark.parametrize(
    ("standings", "found"),
    [
        ({"v1": "trial"}, [("v1/0", None)]),
        ({"v1": "serves"}, [("v1/0", None)]),
        ({"v1": "retired"}, []),
        ({"v1": "serves", "v2": "trial"}, [("v2/0", "v1/0"), ("v1/0", None)]),
        ({"v1": "serves", "v2": "serves"}, [("v2/0", "v1/0")]),
        ({"v1": "trial", "v2": "serves"}, [("v2/0", None)]),
        ({"v1": "serves", "v2": "retired", "v3": "trial"}, [("v3/0", "v1/0"), ("v1/0", None)]),
    ],
)
async def test_rows_are_compared_with_what_would_answer_without_them(
    registry: PriorRegistry,
    state: State,
    priors: ActivePrior,
    standings: dict[str, str],
    found: list[tuple[str, str | None]],
) -> None:
    assert await compared(registry, state, priors, **standings) == found


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("taught v1/0", []),  # also what is compared with the row that knows the answer by heart
        ("taught v2/0", [("v1/0", None)]),
    ],
)
async def test_prompt_that_a_row_has_learned_from_measures_nothing_of_it(
    registry: PriorRegistry,
    state: State,
    priors: ActivePrior,
    prompt: str,
    found: list[tuple[str, str | None]],
) -> None:
    assert await compared(registry, state, priors, prompt, v1="serves", v2="trial") == found


async def test_why_a_covered_request_is_answered_without_a_row_is_told(
    registry: PriorRegistry, state: State, priors: ActivePrior
) -> None:
    version = registry.publish([row(LATENT, KEYS[:1]), row(LATENT, KEYS[1:2]), row(LATENT, KEYS[2:3])], {})
    registry.activate(version)
    note(state, f"{version}/1", *[-1.0] * 7)
    note(state, f"{version}/2", *[1.0] * 7)
    await priors.refresh()
    serving = priors.serving()
    assert serving is not None
    said = [serving.silence(key) for key in KEYS[:4]]
    assert said == ["prior-on-trial", "prior-retired", None, None]


async def test_rows_of_a_pinned_version_speak_and_are_measured(
    registry: PriorRegistry, state: State, priors: ActivePrior
) -> None:
    registry.activate(publish(registry), pinned=True)
    await priors.refresh()
    serving = priors.serving()
    assert serving is not None
    assert serving.prior.covers(KEYS[0])
    assert [one.row.id for one in serving.comparisons(KEYS[0], "a prompt")] == ["v1/0"]
    assert (priors.summary()["version"], priors.summary()["pinned"]) == ("v1", True)
