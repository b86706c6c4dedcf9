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
import torch
from safetensors.torch import load_file, save_file

import memory.registry
from memory.prior import Competence, PriorNetwork
from memory.registry import (
    CorruptPriorError,
    PriorRegistry,
    RegistryError,
    UnknownVersionError,
    WrongSpaceError,
)
from memory.state import State

HIDDEN, LENGTH = 16, 3


def network(seed: int = 0) -> PriorNetwork:
    torch.manual_seed(seed)
    made = PriorNetwork(HIDDEN, LENGTH, rank=4, base=torch.randn(LENGTH, HIDDEN))
    torch.nn.init.normal_(made.up.weight)
    return made


def competence(seed: int = 0) -> Competence:
    rows = np.random.default_rng(seed).normal(size=(5, HIDDEN)).astype(np.float32)
    return Competence(rows / np.linalg.norm(rows, axis=1, keepdims=True), 0.62)


@pytest.fixture
def registry(tmp_path: Path, state: State) -> PriorRegistry:
    return PriorRegistry(tmp_path, "space-a", state)


def publish(registry: PriorRegistry, seed: int = 0, **manifest: Any) -> str:
    return registry.publish(network(seed), competence(seed), manifest)


def test_a_loaded_prior_predicts_what_was_published(registry: PriorRegistry) -> None:
    original, region = network(3), competence(3)
    version = registry.publish(original, region, {"metrics": {"nll": 1.5}, "episode_ids": ["a", "b"]})
    prior = registry.load(version)
    key = region.centroids[1]
    expected = original(torch.from_numpy(key)[None])[0].detach().numpy()
    assert np.array_equal(prior.predict(key), expected)
    assert np.array_equal(prior.competence.centroids, region.centroids)
    assert prior.competence.threshold == region.threshold
    assert (prior.version, prior.space) == (version, "space-a")
    assert prior.manifest["metrics"] == {"nll": 1.5}
    assert not any(parameter.requires_grad for parameter in prior.network.parameters())


def test_thresholds_of_single_centroids_are_kept(registry: PriorRegistry) -> None:
    rows, thresholds = competence().centroids, np.linspace(0.5, 0.9, 5).astype(np.float32)
    found = registry.load(registry.publish(network(), Competence(rows, thresholds), {}))
    assert np.array_equal(found.competence.threshold, thresholds)
    assert found.manifest["threshold"] == pytest.approx(0.5)


def test_what_a_prior_is_asked_with_is_kept(registry: PriorRegistry) -> None:
    region = replace(competence(), means=np.random.default_rng(1).normal(size=(5, HIDDEN)).astype(np.float32))
    found = registry.load(registry.publish(network(), region, {}))
    assert np.array_equal(found.competence.means_of_all, region.means_of_all)


def test_priors_of_before_there_were_means_are_served(registry: PriorRegistry) -> None:
    version = publish(registry)
    folder = registry.root / version
    weights = load_file(folder / "prior.safetensors")
    del weights["competence.means"]
    save_file(weights, folder / "prior.safetensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"] = hashlib.sha256((folder / "prior.safetensors").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    found = registry.load(version).competence
    assert np.array_equal(found.means_of_all, competence().means_of_all)


def test_means_of_another_shape_are_refused(registry: PriorRegistry) -> None:
    region = replace(competence(), means=np.zeros((4, HIDDEN), np.float32))
    with pytest.raises(CorruptPriorError, match="means have shape"):
        registry.load(registry.publish(network(), region, {}))


def test_manifests_are_listed_oldest_first(registry: PriorRegistry) -> None:
    assert registry.versions() == []
    names = [publish(registry, i, parent=f"v{i}" if i else None) for i in range(11)]
    manifests = registry.versions()
    assert [m["version"] for m in manifests] == names == [f"v{i}" for i in range(1, 12)]
    assert manifests[0]["parent"] is None
    assert manifests[10]["parent"] == "v10"
    assert manifests[0]["promoted"] is False
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
    spoilt = network()
    with torch.no_grad():
        spoilt.base[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"network\.base"):
        registry.publish(spoilt, competence(), {})
    with pytest.raises(ValueError, match="JSON"):
        registry.publish(network(), competence(), {"metrics": float("nan")})
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
