"""The consolidated prior: a table of latents, and where each of them may speak.

Owns the values of one published version. Knows nothing of training (`worker/`), of files
(`memory/registry.py`), and of evidence only that it says which rows serve (`memory/evidence.py`).
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import numpy as np

from memory.episode import Array
from memory.evidence import Evidence, weigh

DEFAULT_CENTROIDS = 24
DEFAULT_FLOOR = 0.5
"""Least cosine to a centroid at which a row speaks. Measured on SmolLM2-135M with centred keys
(decisions/latents.md): prompts of different tasks reach a cosine of 0.41, of the same task at least 0.69."""

CLUSTER_COSINE = DEFAULT_FLOOR
"""Chains of keys above this cosine are one cluster. Measured with centred keys, on Qwen2.5-Coder-0.5B
word problems are at 0.61 and more to each other, headlines at 0.90, one to the other at 0.06 at most
(docs/log.md, 2026-11-24)."""

DEFAULT_RECALL_FLOOR = 0.6
"""Least cosine of a recalled episode where no prior that covers the request tells it
(decisions/memory.md)."""

RECALL_FLOOR = "recall_floor"
"""Field of a manifest: the floor that its night learned."""

ALL_LEARNED = "trained_prompts"
"""Field of a manifest of a build in which a version had one set of prompts for all of its rows."""

_ITERATIONS = 50


@dataclass(frozen=True, eq=False)
class Coverage:
    """A region of keys: all that are near enough to one of its centroids."""

    centroids: Array
    """(K, d), norm 1."""
    thresholds: Array
    """(K,) least cosine to each."""

    @classmethod
    def around(
        cls, keys: Array, threshold: float, *, centroids: int = DEFAULT_CENTROIDS, seed: int = 0
    ) -> "Coverage":
        """Return the region within `threshold` of at most so many centroids of `keys`, (N, d).

        Raises:
            ValueError: no keys, or keys that are no finite (N, d).
        """
        rows = np.asarray(keys, dtype=np.float32)
        if rows.ndim != 2 or not len(rows) or not np.isfinite(rows).all():
            raise ValueError("keys are no finite array of shape (N, d) with N of at least 1")
        means = spherical_means(unit(rows), min(centroids, len(rows)), np.random.default_rng(seed))
        return cls(means, np.full(len(means), threshold, np.float32))

    @property
    def balls(self) -> list[tuple[list[float], float]]:
        """The centroids, each with its least cosine: what is in one of them is in the region."""
        return list(zip(self.centroids.tolist(), self.thresholds.tolist(), strict=True))

    def score(self, key: Array) -> float:
        """Return the cosine of `key`, (d,), to its nearest centroid; -1 for a key without direction."""
        return float(self._cosines(key).max())

    def covers(self, key: Array) -> bool:
        """Return whether `key`, (d,), lies in the region."""
        return bool((self._cosines(key) >= self.thresholds).any())

    def _cosines(self, key: Array) -> Array:
        norm = float(np.linalg.norm(key))
        if not np.isfinite(norm) or norm == 0.0:
            return np.full(len(self.centroids), -1, np.float32)
        return cast(Array, self.centroids @ np.asarray(key, np.float32) / np.float32(norm))


Leanings = Mapping[tuple[str, ...], tuple[float, ...]]
"""How much too likely the model takes each of some choices to be, by the choices (`model/calibration.py`)."""


@dataclass(frozen=True, eq=False)
class Row:
    """One cluster's latent. It keeps its id when a later version carries it on."""

    id: str
    """Such as v3/0: the version that it was born in, and its number there."""
    latent: Array
    """(L, d)."""
    coverage: Coverage
    baseline: str | None = None
    """Row that served the cluster when this one was made, with which it is compared; None: no latent."""
    stake: float = 1.0
    """What its e-values begin with (`memory/evidence.py`)."""
    leanings: Leanings = field(default_factory=dict)
    """Of the cluster, under no latent, for the choices that it was learned for."""
    promoted: bool = False
    """Whether the gate of an earlier build let it serve, so that it does until outcomes take it away."""

    @property
    def born(self) -> int:
        """Number of the version that it was born in."""
        return int(self.id.partition("/")[0].removeprefix("v"))


@dataclass(frozen=True, eq=False)
class Prior:
    """One published version, ready to serve. Immutable, so a request keeps the one it started with."""

    version: str
    space: str
    rows: tuple[Row, ...]
    manifest: Mapping[str, Any]

    def row(self, key: Array) -> Row | None:
        """Return the row that speaks for `key`, (d,): the first of those that cover it. None: none does.

        Raises:
            ValueError: `key` has another shape.
        """
        return next(iter(self.covering(key)), None)

    def covering(self, key: Array) -> list[Row]:
        """Return the rows that cover `key`, (d,): those born last first, and of these the nearest.

        Raises:
            ValueError: `key` has another shape.
        """
        if self.rows and key.shape != self.rows[0].coverage.centroids.shape[1:]:
            raise ValueError(
                f"key has shape {key.shape}, expected {self.rows[0].coverage.centroids.shape[1:]}"
            )
        covering = [row for row in self.rows if row.coverage.covers(key)]
        return sorted(covering, key=lambda row: (row.born, row.coverage.score(key)), reverse=True)

    def covers(self, key: Array) -> bool:
        """Return whether a row speaks for `key`, (d,)."""
        return self.row(key) is not None

    def predict(self, key: Array) -> Array:
        """Return the latent, (L, d), of the row that speaks for `key`, (d,).

        Raises:
            LookupError: none does.
        """
        row = self.row(key)
        if row is None:
            raise LookupError(f"no row of {self.version} covers the key")
        return row.latent

    def only(self, ids: Collection[str]) -> "Prior":
        """Return the same version with the rows of these ids alone."""
        return replace(self, rows=tuple(row for row in self.rows if row.id in ids))

    @cached_property
    def learned(self) -> Mapping[str, frozenset[str]]:
        """Digests (`memory.episode.prompt_digest`) of what each row has learned from, by its id."""
        if ALL_LEARNED in self.manifest:
            return dict.fromkeys((row.id for row in self.rows), frozenset(self.manifest[ALL_LEARNED]))
        return learned_of({"version": self.version, **self.manifest})

    @property
    def recall_floor(self) -> float:
        """Least cosine of a recalled episode, as the prior's night learned it."""
        return float(self.manifest.get(RECALL_FLOOR, DEFAULT_RECALL_FLOOR))


def learned_of(manifest: Mapping[str, Any]) -> Mapping[str, frozenset[str]]:
    """Return what a manifest says that its rows have learned from, by their ids."""
    version = manifest["version"]
    if ALL_LEARNED in manifest:
        return {f"{version}/0": frozenset(manifest[ALL_LEARNED])}
    # New rows are named by their number, for they get their ids when the version gets its name.
    return {
        row if "/" in row else f"{version}/{row}": frozenset(digests)
        for row, digests in manifest.get("learned", {}).items()
    }


def lines_digest(lines: Iterable[str]) -> str:
    """Return SHA-256 of some lines, as `LC_ALL=C sort | sha256sum` has it."""
    return hashlib.sha256("".join(f"{line}\n" for line in sorted(lines)).encode()).hexdigest()


def standings(prior: Prior, outcomes: Mapping[str, Sequence[float]]) -> dict[str, Evidence]:
    """Return the evidence about each row of a prior, by its id.

    What the gate of an earlier build promoted serves until outcomes take it away.

    Args:
        prior: a version.
        outcomes: differences that were observed of each row, in order.
    """
    evidence_of = {}
    for row in prior.rows:
        evidence = weigh(outcomes.get(row.id, ()), stake=row.stake)
        if row.promoted and evidence.standing == "on trial":
            evidence = replace(evidence, standing="serves")
        evidence_of[row.id] = evidence
    return evidence_of


def unit(rows: Array) -> Array:
    """Return the rows, (N, d), with norm 1; those without direction stay zero."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return cast(Array, rows / np.where(norms > 0, norms, 1))


def spherical_means(keys: Array, count: int, rng: np.random.Generator) -> Array:
    """Return at most `count` unit centroids of unit keys, (N, d): k-means by cosine, started spread out."""
    chosen: list[Array] = [keys[rng.integers(len(keys))]]
    while len(chosen) < count:
        far = np.clip(1 - (keys @ np.stack(chosen).T).max(axis=1), 0, None).astype(np.float64)
        if far.sum() <= 1e-9:  # only duplicates are left
            break
        chosen.append(keys[rng.choice(len(keys), p=far / far.sum())])
    centroids = np.stack(chosen)
    labels = np.full(len(keys), -1)
    for _ in range(_ITERATIONS):
        nearest = (keys @ centroids.T).argmax(axis=1)
        if np.array_equal(nearest, labels):
            break
        labels = nearest
        sums = np.eye(len(centroids), dtype=np.float32)[labels].T @ keys  # (K, d)
        # A centroid that lost its keys, or whose keys cancel out, stays where it was.
        alive = np.linalg.norm(sums, axis=1) > 1e-6
        centroids[alive] = unit(sums[alive])
    return centroids
