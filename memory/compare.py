"""Two versions of a prior side by side.

Owns which cluster of one is which of the other, and how far their regions and latents agree. Knows nothing
of evidence or of which version serves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memory.episode import Array
from memory.prior import CLUSTER_COSINE, Coverage, Prior, Row


@dataclass(frozen=True, eq=False)
class Match:
    """A cluster, by the row that each version has for it; None: it has none."""

    a: Row | None
    b: Row | None
    key_cosine: float | None
    """The highest cosine of a centroid of one to a centroid of the other."""
    a_covered: float | None
    """Share of a's centroids that b's row covers."""
    b_covered: float | None
    """Share of b's centroids that a's row covers."""
    latent_cosine: float | None
    """Of the two latents, as vectors of length L * d."""
    latent_distance: float | None
    """Euclidean distance of the two latents, over the root of the product of their norms."""

    @property
    def same(self) -> bool:
        """Whether both versions have the very same row."""
        return self.a is not None and self.b is not None and self.a.id == self.b.id


def compare(a: Prior, b: Prior) -> list[Match]:
    """Return the clusters of two versions of one space: those that both have first, each row once.

    A row of both is its own match. Of the others those match whose centroids are nearest, the nearest first,
    down to the cosine at which nights put prompts into one cluster.
    """
    shared = {row.id for row in a.rows} & {row.id for row in b.rows}
    mine, theirs = ({row.id: row for row in one.rows} for one in (a, b))
    found = [_match(mine[name], theirs[name]) for name in sorted(shared)]
    left = [[row for name, row in one.items() if name not in shared] for one in (mine, theirs)]
    for one, other in _nearest_pairs(*left):
        found.append(_match(one, other))
    matched = {row.id for match in found for row in (match.a, match.b) if row is not None}
    found += [_alone(row, None) for row in left[0] if row.id not in matched]
    found += [_alone(None, row) for row in left[1] if row.id not in matched]
    return found


def _nearest_pairs(rows: Sequence[Row], others: Sequence[Row]) -> list[tuple[Row, Row]]:
    ranked = sorted(
        ((_key_cosine(one, other), one, other) for one in rows for other in others),
        key=lambda ranking: (-ranking[0], ranking[1].id, ranking[2].id),
    )
    taken: set[str] = set()
    pairs = []
    for cosine, one, other in ranked:
        if cosine >= CLUSTER_COSINE and not taken & {one.id, other.id}:
            taken |= {one.id, other.id}
            pairs.append((one, other))
    return pairs


def _match(a: Row, b: Row) -> Match:
    return Match(
        a,
        b,
        _key_cosine(a, b),
        _covered(a.coverage, b.coverage),
        _covered(b.coverage, a.coverage),
        *_latents(a.latent, b.latent),
    )


def _alone(a: Row | None, b: Row | None) -> Match:
    return Match(a, b, None, None, None, None, None)


def _key_cosine(a: Row, b: Row) -> float:
    return float((a.coverage.centroids @ b.coverage.centroids.T).max())


def _covered(inner: Coverage, outer: Coverage) -> float:
    return float(np.mean([outer.covers(centroid) for centroid in inner.centroids]))


def _latents(a: Array, b: Array) -> tuple[float | None, float | None]:
    """Return cosine and relative distance of two latents, (L, d); None of such as have no direction."""
    x, y = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    if x.shape != y.shape or norms == 0.0:
        return None, None
    return float(x @ y) / norms, float(np.linalg.norm(x - y)) / norms**0.5
