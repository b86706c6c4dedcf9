"""The consolidated prior: a key in, a latent out, and where that may be trusted.

Owns the network's shape, the region of keys it is competent in, and what it is asked with there. Knows
nothing of training (`worker/`) or of files (`memory/registry.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from memory.chains import chains
from memory.episode import Array

DEFAULT_CLUSTERS = 24
DEFAULT_QUANTILE = 0.05
DEFAULT_FLOOR = 0.5
"""Least threshold. Measured on SmolLM2-135M with centred keys (ADR 0001): prompts of different tasks
reach a cosine of 0.41, of the same task at least 0.69."""

KIND_COSINE = DEFAULT_FLOOR
"""Chains of keys above this cosine are one kind of task. Measured with centred keys, on Qwen2.5-Coder-0.5B
word problems are at 0.61 and more to each other, headlines at 0.90, one to the other at 0.06 at most
(ADR 0019)."""

DEFAULT_RECALL_FLOOR = 0.6
"""Least cosine of a recalled episode where no prior that covers the request tells it (ADR 0013)."""

RECALL_FLOOR = "recall_floor"
"""Field of a manifest: the floor that its night learned."""

_ITERATIONS = 50


class PriorNetwork(nn.Module):
    """One latent shared by all keys, plus a low-rank residual of the key.

    The residual starts at zero, so an untrained network gives `base` for every key, and its hidden
    layer is bounded, so that no key can make it large. It is trained with the key of each episode and asked
    with the mean of a kind of task (`Competence.mean`).
    """

    def __init__(self, hidden_size: int, length: int, rank: int = 32, *, base: Tensor | None = None) -> None:
        """`base` is the (L, d) latent to start from; zeros unless given."""
        super().__init__()
        self.hidden_size = hidden_size
        self.length = length
        self.rank = rank
        start = torch.zeros(length, hidden_size) if base is None else base.detach().clone().float()
        if start.shape != (length, hidden_size):
            raise ValueError(f"base has shape {tuple(start.shape)}, expected {(length, hidden_size)}")
        self.base = nn.Parameter(start)
        self.down = nn.Linear(hidden_size, rank, bias=False)
        self.up = nn.Linear(rank, length * hidden_size, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, keys: Tensor) -> Tensor:
        """Return latents, (B, L, d), for keys, (B, d)."""
        residual = self.up(torch.tanh(self.down(keys)))  # (B, L·d)
        latents: Tensor = self.base + residual.view(-1, self.length, self.hidden_size)
        return latents


def kind_means(keys: Array, asked: Array) -> Array:
    """Return the mean of the kind of task that each of `asked`, (M, d), is nearest to: (M, d).

    Kinds are chains of the unit `keys`, (N, d), N ≥ 1, and means are not normalised.
    """
    means = np.empty_like(keys)
    for kind in chains(keys, KIND_COSINE):
        means[kind] = keys[kind].mean(axis=0)
    found: Array = means[(asked @ keys.T).argmax(axis=1)]
    return found


@dataclass(frozen=True, eq=False)
class Competence:
    """The region of keys a prior was trained on: within its `threshold` of one of the centroids.

    A prior is not asked with a request's own key but with the mean of its kind of task: what the residual
    makes of a single key is mostly what it learned by heart of the keys near it (ADR 0021).
    """

    centroids: Array
    """(C, d), norm 1."""
    threshold: float | Array
    """Least cosine to a centroid: one for all, or one for each, (C,)."""
    means: Array | None = None
    """Near each centroid the mean of the training keys of its kind of task, (C, d); None: of the centroids,
    for priors published before there were means."""

    @classmethod
    def fit(
        cls,
        train_keys: Array,
        holdout_keys: Array,
        *,
        clusters: int = DEFAULT_CLUSTERS,
        quantile: float = DEFAULT_QUANTILE,
        floor: float = DEFAULT_FLOOR,
        seed: int = 0,
    ) -> "Competence":
        """Return the region around `train_keys`, (N, d), wide enough for most of `holdout_keys`, (M, d).

        The threshold is the given quantile of the hold-out's cosines to their nearest centroid, and
        never under `floor`; with an empty hold-out it is fitted on the training keys themselves.

        Raises:
            ValueError: no training keys, or keys that are no finite (N, d).
        """
        train = _normalised(train_keys, "train_keys")
        if not len(train):
            raise ValueError("train_keys is empty")
        centroids = _spherical_means(train, min(clusters, len(train)), np.random.default_rng(seed))
        judged = _normalised(holdout_keys, "holdout_keys") if len(holdout_keys) else train
        nearest = (judged @ centroids.T).max(axis=1)
        threshold = max(floor, float(np.quantile(nearest, quantile)))
        return cls(centroids, threshold, kind_means(train, centroids))

    @classmethod
    def joined(cls, parts: Sequence["Competence"]) -> "Competence":
        """Return the region that is all of `parts`, at least one, together; each keeps its threshold."""
        if len(parts) == 1:
            return parts[0]
        thresholds = [np.broadcast_to(np.float32(part.threshold), len(part.centroids)) for part in parts]
        return cls(
            np.concatenate([part.centroids for part in parts]),
            np.concatenate(thresholds),
            np.concatenate([part.means_of_all for part in parts]),
        )

    @cached_property
    def means_of_all(self) -> Array:
        """`means`, wherever they come from."""
        return kind_means(self.centroids, self.centroids) if self.means is None else self.means

    def score(self, key: Array) -> float:
        """Return the cosine of `key`, (d,), to its nearest centroid; -1 for a key without direction."""
        return float(self._cosines(key).max())

    def covers(self, key: Array) -> bool:
        """Return whether `key` lies in the region."""
        return bool((self._cosines(key) >= self.threshold).any())

    def mean(self, key: Array) -> Array:
        """Return what a prior is asked with for `key`, (d,): the mean of the kind of task that covers it.

        Of several it is that of the nearest centroid, also where none covers it.
        """
        cosines = self._cosines(key)
        covering = cosines >= self.threshold
        return np.asarray(self.means_of_all[np.where(covering, cosines, cosines - 2).argmax()], np.float32)

    def _cosines(self, key: Array) -> Array:
        """Return the cosine of `key` to each centroid, (C,); -1 for a key without direction."""
        norm = float(np.linalg.norm(key))
        if not np.isfinite(norm) or norm == 0.0:
            return np.full(len(self.centroids), -1, np.float32)
        return cast(Array, self.centroids @ np.asarray(key, np.float32) / np.float32(norm))


@dataclass(frozen=True, eq=False)
class Prior:
    """One published version, ready to serve. Immutable, so a request keeps the one it started with."""

    version: str
    space: str
    network: PriorNetwork
    competence: Competence
    manifest: Mapping[str, Any]

    def predict(self, key: Array) -> Array:
        """Return the latent, (L, d), for the kind of task of `key`, (d,).

        Raises:
            ValueError: `key` has another shape.
        """
        if key.shape != (self.network.hidden_size,):
            raise ValueError(f"key has shape {key.shape}, expected {(self.network.hidden_size,)}")
        with torch.inference_mode():
            latent = self.network(torch.from_numpy(self.competence.mean(key))[None])[0]
        return cast(Array, latent.numpy())

    def covers(self, key: Array) -> bool:
        """Return whether the prior was trained on keys like this one."""
        return self.competence.covers(key)

    @property
    def recall_floor(self) -> float:
        """Least cosine of a recalled episode, as the prior's night learned it."""
        return float(self.manifest.get(RECALL_FLOOR, DEFAULT_RECALL_FLOOR))


def _normalised(keys: Array, name: str) -> Array:
    rows = np.asarray(keys, dtype=np.float32)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise ValueError(f"{name} is no finite array of shape (N, d)")
    return _unit(rows)


def _unit(rows: Array) -> Array:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return cast(Array, rows / np.where(norms > 0, norms, 1))


def _spherical_means(keys: Array, clusters: int, rng: np.random.Generator) -> Array:
    """Return at most `clusters` unit centroids of unit keys: k-means by cosine, started spread out."""
    chosen = [keys[rng.integers(len(keys))]]
    while len(chosen) < clusters:
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
        sums = np.eye(len(centroids), dtype=np.float32)[labels].T @ keys  # (C, d)
        # A cluster that lost its keys, or whose keys cancel out, stays where it was.
        alive = np.linalg.norm(sums, axis=1) > 1e-6
        centroids[alive] = _unit(sums[alive])
    return centroids
