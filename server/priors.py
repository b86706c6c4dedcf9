"""What is known of the versions of the prior, for people and programs.

Owns labels, lineage, evidence as it is now, and what versions were trained on. Knows nothing of HTTP, of how
versions are trained or of how the active one serves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from memory.compare import Match, compare
from memory.evidence import Evidence
from memory.prior import learned_of, lines_digest
from memory.registry import Activation, PriorRegistry, RegistryError
from memory.state import State

Label = Literal["serving", "trial", "pinned"]
Manifest = Mapping[str, Any]


@dataclass(frozen=True)
class Versions:
    """All versions, and which of them is active."""

    active: str | None
    pinned: bool
    labels: Sequence[Label]
    """Of the active one; others have none."""
    manifests: Sequence[Manifest]
    """Oldest first."""
    activations: Sequence[Activation]
    """Newest first."""


@dataclass(frozen=True)
class Version:
    """All that is known of one."""

    manifest: Manifest
    labels: Sequence[Label]
    lineage: Sequence[Manifest]
    """Itself, its parent, and so on, as far as there are any."""
    now: Mapping[str, Evidence]
    """What is known of each row by now, by its id."""


@dataclass(frozen=True)
class Comparison:
    """Two versions side by side."""

    matches: Sequence[Match]
    now: Mapping[str, Evidence]
    """What is known of each row of either, by its id."""


class Priors:
    """Looks into the versions of one space. Everything blocks."""

    def __init__(self, registry: PriorRegistry, state: State) -> None:
        self._registry, self._state = registry, state

    def versions(self) -> Versions:
        """Return all versions.

        Raises:
            StateUnavailableError: the state cannot be read.
        """
        active, pinned = self._registry.active(), self._registry.pinned()
        return Versions(
            active=active,
            pinned=pinned,
            labels=self._labels(active, pinned),
            manifests=self._registry.versions(),
            activations=self._registry.activations(),
        )

    def version(self, name: str) -> Version | None:
        """Return one version; None: there is none of that name.

        Raises:
            StateUnavailableError: the state cannot be read.
        """
        manifests = {str(manifest["version"]): manifest for manifest in self._registry.versions()}
        if name not in manifests:
            return None
        active = self._registry.active()
        return Version(
            manifest=manifests[name],
            labels=self._labels(active, self._registry.pinned()) if name == active else (),
            lineage=_lineage(manifests, name),
            now=self._now(name),
        )

    def compare(self, a: str, b: str) -> Comparison:
        """Return two versions side by side.

        Raises:
            UnknownVersionError, CorruptPriorError, WrongSpaceError: one of them cannot be read.
            StateUnavailableError: the state cannot be read.
        """
        matches = compare(self._registry.load(a), self._registry.load(b))
        return Comparison(matches, {**self._now(a), **self._now(b)})

    def _labels(self, active: str | None, pinned: bool) -> tuple[Label, ...]:
        if active is None:
            return ()
        standing = {evidence.standing for evidence in self._now(active).values()}
        labels: list[Label] = []
        if pinned or "serves" in standing:
            labels.append("serving")
        if "on trial" in standing and not pinned:
            labels.append("trial")
        return (*labels, "pinned") if pinned else tuple(labels)

    def _now(self, version: str) -> Mapping[str, Evidence]:
        try:
            prior = self._registry.load(version)
        except RegistryError:  # the manifest says so
            return {}
        return self._state.evidence(prior)


def trained_on(manifest: Manifest) -> dict[str, Any]:
    """Return what a version learned from, by digest and number; null is what its build did not write down."""
    # An earlier build had no labels, and none had digests.
    episodes = [row[0] for row in manifest.get("labels", ())] or list(manifest.get("episode_ids", ()))
    digests = manifest.get("digests", {})
    prompts = frozenset[str]().union(*learned_of(manifest).values())
    return {
        "episodes": len(episodes),
        "prompts": len(prompts),
        "episodes_sha256": digests.get("episodes_sha256") or (lines_digest(episodes) if episodes else None),
        "dataset_sha256": digests.get("dataset_sha256"),
        "prompts_sha256": lines_digest(prompts) if prompts else None,
        "window": manifest.get("window"),
    }


def _lineage(manifests: Mapping[str, Manifest], name: str | None) -> list[Manifest]:
    found: list[Manifest] = []
    known: set[str] = set()
    while name is not None and name in manifests and name not in known:
        known.add(name)
        found.append(manifests[name])
        parent = manifests[name].get("parent")
        name = None if parent is None else str(parent)
    return found
