"""Published priors: complete or absent, checked before they serve, numbered once."""

import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from sqlalchemy import update

import memory.registry
from memory.prior import Row
from memory.registry import (
    CorruptPriorError,
    NothingBeforeError,
    PriorRegistry,
    RegistryError,
    UnknownVersionError,
    WrongSpaceError,
)
from memory.schema import labels
from memory.state import State
from tests.tables import row

HIDDEN, LENGTH = 16, 3


def made(seed: int = 0, *, id: str = "", baseline: str | None = None) -> Row:
    rng = np.random.default_rng(seed)
    keys = rng.normal(size=(5, HIDDEN))
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    return row(rng.normal(size=(LENGTH, HIDDEN)), keys, 0.62, id=id, baseline=baseline)


@pytest.fixture
def registry(tmp_path: Path, state: State) -> PriorRegistry:
    return PriorRegistry(tmp_path, "space-a", state)


def publish(registry: PriorRegistry, seed: int = 0, **manifest: Any) -> str:
    return registry.publish([made(seed)], manifest)


def test_a_loaded_prior_gives_what_was_published_to_the_bit(registry: PriorRegistry) -> None:
    rows = [made(3), replace(made(4, baseline="v1/0"), stake=0.5, leanings={("yes", "no"): (0.25, -0.5)})]
    version = registry.publish(rows, {"metrics": {"nll": 1.5}, "episode_ids": ["a", "b"]})
    prior = registry.load(version)
    for original, found in zip(rows, prior.rows, strict=True):
        assert np.array_equal(found.latent, original.latent)
        assert np.array_equal(found.coverage.centroids, original.coverage.centroids)
        assert np.array_equal(found.coverage.thresholds, original.coverage.thresholds)
        assert (found.baseline, found.stake, found.leanings) == (
            original.baseline,
            original.stake,
            original.leanings,
        )
        assert np.array_equal(prior.predict(original.coverage.centroids[1]), original.latent)
    assert (prior.version, prior.space) == (version, "space-a")
    assert prior.manifest["metrics"] == {"nll": 1.5}


def test_rows_are_named_by_the_version_they_were_born_in_and_keep_that_name(registry: PriorRegistry) -> None:
    first = registry.load(registry.publish([made(1), made(2)], {}))
    assert [one.id for one in first.rows] == ["v1/0", "v1/1"]
    second = registry.load(registry.publish([made(3), first.rows[1]], {}))
    assert [one.id for one in second.rows] == ["v2/0", "v1/1"]
    assert [one.born for one in second.rows] == [2, 1]


def earlier_build(
    registry: PriorRegistry, *, means: bool = True, **said: Any
) -> tuple[str, dict[str, np.ndarray]]:
    """Publish a version and put in its place what builds wrote when priors were networks."""
    version = publish(registry)
    rng = np.random.default_rng(7)
    centroids = rng.normal(size=(4, HIDDEN)).astype(np.float32)
    kinds = rng.normal(size=(2, HIDDEN)).astype(np.float32)
    weights = {
        "network.base": rng.normal(size=(LENGTH, HIDDEN)).astype(np.float32),
        "network.down.weight": rng.normal(size=(2, HIDDEN)).astype(np.float32),
        "network.up.weight": rng.normal(size=(LENGTH * HIDDEN, 2)).astype(np.float32),
        "competence.centroids": centroids / np.linalg.norm(centroids, axis=1, keepdims=True),
    }
    if means:
        weights["competence.means"] = kinds[[0, 1, 1, 0]]
    folder = registry.root / version
    save_file(weights, folder / "prior.safetensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["rows"]
    manifest |= {"rank": 2, "threshold": 0.9, "promoted": True, **said}
    manifest["sha256"] = hashlib.sha256((folder / "prior.safetensors").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return version, weights


def test_a_prior_that_was_a_network_is_served_as_the_table_of_what_it_gave(registry: PriorRegistry) -> None:
    version, weights = earlier_build(registry)
    prior = registry.load(version)
    assert sorted(one.id for one in prior.rows) == ["v1/0", "v1/1"]
    for centroid, mean in zip(weights["competence.centroids"], weights["competence.means"], strict=True):
        hidden = np.tanh(weights["network.down.weight"] @ mean)
        residual = (weights["network.up.weight"] @ hidden).reshape(LENGTH, HIDDEN)
        assert np.allclose(prior.predict(centroid), weights["network.base"] + residual, atol=1e-4)
        assert not prior.covers(-centroid)


def test_what_an_earlier_build_promoted_stays_so_in_versions_that_carry_it_on(
    registry: PriorRegistry,
) -> None:
    version, _ = earlier_build(registry, trained_prompts=["ab", "cd"])
    old = registry.load(version)
    assert all(one.promoted for one in old.rows)
    assert old.learned == {one.id: {"ab", "cd"} for one in old.rows}
    later = registry.load(registry.publish([made(5), *old.rows], {}))
    assert [one.promoted for one in later.rows] == [False, True, True]


def test_a_network_that_was_asked_with_single_keys_says_that_it_cannot_be_served(
    registry: PriorRegistry,
) -> None:
    version, _ = earlier_build(registry, means=False)
    with pytest.raises(CorruptPriorError, match="let a night train anew"):
        registry.load(version)


def test_manifests_are_listed_oldest_first(registry: PriorRegistry) -> None:
    assert registry.versions() == []
    names = [publish(registry, i, parent=f"v{i}" if i else None) for i in range(11)]
    manifests = registry.versions()
    assert [m["version"] for m in manifests] == names == [f"v{i}" for i in range(1, 12)]
    assert manifests[0]["parent"] is None
    assert manifests[10]["parent"] == "v10"
    assert all(m["space"] == "space-a" and m["created_at"] for m in manifests)


def test_what_is_pinned_stays_until_it_is_released(registry: PriorRegistry) -> None:
    first, second = publish(registry), publish(registry, 1)
    assert registry.activate_unless_pinned(first)
    assert (registry.active(), registry.pinned()) == (first, False)
    registry.activate(None, pinned=True)
    assert not registry.activate_unless_pinned(second)
    assert (registry.active(), registry.pinned()) == (None, True)
    registry.activate(second, pinned=True)
    assert registry.activate_unless_pinned(second)
    assert registry.pinned()
    registry.release()
    assert (registry.active(), registry.pinned()) == (second, False)
    assert registry.activate_unless_pinned(first)
    assert registry.active() == first


def test_publishing_does_not_activate(registry: PriorRegistry) -> None:
    publish(registry)
    assert registry.active() is None


def test_activating_and_rolling_back(registry: PriorRegistry, tmp_path: Path, state_url: str) -> None:
    first, second = publish(registry, 1), publish(registry, 2)
    with State(state_url) as other_state:
        other_process = PriorRegistry(tmp_path, "space-a", other_state)
        for version in (first, second, first, None, second):
            registry.activate(version)
            assert other_process.active() == version


@pytest.mark.parametrize("version", ["v2", "v0", "v01", "", "none", "..", "../space-b/v1", "lock"])
def test_an_unknown_version_is_refused_and_the_active_one_stays(
    registry: PriorRegistry, version: str
) -> None:
    registry.activate(publish(registry))
    with pytest.raises(UnknownVersionError):
        registry.load(version)
    with pytest.raises(UnknownVersionError):
        registry.activate(version)
    assert registry.active() == "v1"


def test_a_prior_of_another_space_is_refused(registry: PriorRegistry, tmp_path: Path, state: State) -> None:
    other = PriorRegistry(tmp_path, "space-b", state)
    publish(other)
    registry.activate(publish(registry))
    shutil.copytree(tmp_path / "space-b" / "v1", tmp_path / "space-a" / "v2")
    # Same number, other space: its manifest calls itself v1.
    manifest_path = tmp_path / "space-a" / "v2" / "manifest.json"
    manifest = json.loads(manifest_path.read_text())
    manifest_path.write_text(json.dumps(manifest | {"version": "v2"}))
    with pytest.raises(WrongSpaceError, match="space-b"):
        registry.activate("v2")
    assert registry.active() == "v1"
    assert other.active() is None


def spoil_byte(folder: Path) -> None:
    data = bytearray((folder / "prior.safetensors").read_bytes())
    data[-5] ^= 1
    (folder / "prior.safetensors").write_bytes(data)


def change_manifest(**fields: Any) -> Any:
    def change(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | fields))

    return change


CORRUPTIONS = {
    "one-bit": spoil_byte,
    "cut-short": lambda f: (f / "prior.safetensors").write_bytes(b"cut"),
    "no-weights": lambda f: (f / "prior.safetensors").unlink(),
    "no-manifest": lambda f: (f / "manifest.json").unlink(),
    "no-json": lambda f: (f / "manifest.json").write_text("{"),
    "no-text": lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe"),
    "a-list": lambda f: (f / "manifest.json").write_text("[]"),
    "other-version": change_manifest(version="v9"),
    "other-length": change_manifest(length=LENGTH + 1),
    "no-size": change_manifest(hidden_size=None),
    "no-checksum": change_manifest(sha256=None),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_corrupt_prior_never_becomes_active(registry: PriorRegistry, corruption: str) -> None:
    registry.activate(publish(registry, 1))
    publish(registry, 2)
    CORRUPTIONS[corruption](registry.root / "v2")
    with pytest.raises(CorruptPriorError, match=r"space-a.v2"):
        registry.load("v2")
    with pytest.raises(CorruptPriorError):
        registry.activate("v2")
    assert registry.active() == "v1"
    assert [m["version"] for m in registry.versions()] == ["v1", "v2"]
    registry.load("v1")


def test_a_number_is_never_used_again(registry: PriorRegistry, tmp_path: Path, state: State) -> None:
    publish(registry)
    publish(registry)
    registry.activate("v1", pinned=True)
    shutil.rmtree(registry.root / "v2")
    assert publish(PriorRegistry(tmp_path, "space-a", state)) == "v3"
    assert (registry.active(), registry.pinned()) == ("v1", True)


def test_the_number_of_a_folder_that_the_state_does_not_know_is_not_used(
    registry: PriorRegistry, tmp_path: Path
) -> None:
    publish(registry)
    with State.in_folder(tmp_path / "anew") as other:
        assert publish(PriorRegistry(tmp_path, "space-a", other)) == "v2"


def test_a_failed_publication_leaves_nothing(
    registry: PriorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.activate(publish(registry))

    def full_disk(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("memory.atomic.os.rename", full_disk)
    with pytest.raises(OSError, match="no space"):
        publish(registry)
    monkeypatch.undo()
    assert [m["version"] for m in registry.versions()] == ["v1"]
    assert sorted(p.name for p in registry.root.iterdir()) == ["v1"]
    assert publish(registry) == "v3"


def test_what_is_not_finite_or_not_json_is_not_published(registry: PriorRegistry) -> None:
    spoilt = made()
    spoilt.latent[0, 0] = np.nan
    with pytest.raises(ValueError, match="latents"):
        registry.publish([spoilt], {})
    with pytest.raises(ValueError, match="JSON"):
        registry.publish([made()], {"metrics": float("nan")})
    with pytest.raises(ValueError, match="no rows"):
        registry.publish([], {})
    assert registry.versions() == []


def test_leftovers_of_a_death_are_no_versions(registry: PriorRegistry) -> None:
    publish(registry)
    (registry.root / ".v2.0123").mkdir()
    (registry.root / ".v2.0123" / "manifest.json").write_text("{}")
    assert [m["version"] for m in registry.versions()] == ["v1"]
    assert publish(registry) == "v2"


def test_publishers_at_once_get_different_versions(registry: PriorRegistry) -> None:
    with ThreadPoolExecutor(6) as pool:
        names = list(pool.map(lambda i: publish(registry, i), range(12)))
    assert sorted(names) == sorted(f"v{i}" for i in range(1, 13))
    for name in names:
        registry.load(name)


@pytest.mark.parametrize("space", ["", "..", "a/b", ".hidden", "a\n"])
def test_a_space_that_is_no_folder_name_is_refused(tmp_path: Path, state: State, space: str) -> None:
    with pytest.raises(ValueError, match="no id of a space"):
        PriorRegistry(tmp_path, space, state)


def test_every_error_is_a_registry_error() -> None:
    for error in (UnknownVersionError, CorruptPriorError, WrongSpaceError):
        assert issubclass(error, RegistryError)
    assert issubclass(RegistryError, memory.registry.LatentMemoryError)


def test_a_rollback_goes_to_what_was_active_before_and_again_further_back(
    registry: PriorRegistry, tmp_path: Path, state_url: str
) -> None:
    first, second, third = (publish(registry, seed) for seed in range(3))
    registry.activate_unless_pinned(first)
    registry.activate_unless_pinned(second)
    registry.activate(third, pinned=True)
    registry.activate(third, pinned=True)
    registry.release()
    with State(state_url) as other_state:
        other_process = PriorRegistry(tmp_path, "space-a", other_state)
        assert other_process.roll_back() == second
        assert (registry.active(), registry.pinned()) == (second, True)
        assert not registry.activate_unless_pinned(third), "a night leaves it so"
    assert registry.roll_back() == first
    assert registry.roll_back() is None
    with pytest.raises(NothingBeforeError, match="before no prior"):
        registry.roll_back()
    registry.activate(third)
    assert registry.roll_back() is None, "what was active before, not what lies below that"
    found = [(one.version, one.cause) for one in registry.activations(5)]
    assert found == [
        (None, "rollback"),
        (third, "night"),
        (None, "rollback"),
        (first, "rollback"),
        (second, "rollback"),
    ]


def test_a_version_that_cannot_be_served_any_more_is_not_rolled_back_to(registry: PriorRegistry) -> None:
    first, second = publish(registry), publish(registry, 1)
    registry.activate(first)
    registry.activate(second)
    shutil.rmtree(registry.root / first)
    with pytest.raises(UnknownVersionError):
        registry.roll_back()
    assert (registry.active(), registry.pinned()) == (second, False)


def test_what_an_earlier_build_made_active_is_rolled_back_to_but_not_beyond(
    registry: PriorRegistry, state: State
) -> None:
    first, second = publish(registry), publish(registry, 1)
    with state.write() as connection:
        connection.execute(update(labels).values(active=first))
    with pytest.raises(NothingBeforeError):
        registry.roll_back()
    registry.activate(second)
    assert registry.roll_back() == first
    with pytest.raises(NothingBeforeError):
        registry.roll_back()


def test_spaces_have_activations_of_their_own(registry: PriorRegistry, tmp_path: Path, state: State) -> None:
    other = PriorRegistry(tmp_path, "space-b", state)
    registry.activate(publish(registry))
    with pytest.raises(NothingBeforeError):
        other.roll_back()
    assert other.activations() == []
