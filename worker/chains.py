"""Chains of keys: what is near to what, and through what.

Owns clustering by single linkage of cosines. Knows nothing of what keys stand for.
"""

import numpy as np
from numpy.typing import NDArray

from memory.episode import Array

_BLOCK = 1024


def chains(keys: Array, cosine: float) -> list[list[int]]:
    """Return the clusters of unit `keys`, (N, d), by index: chains of keys whose cosine is above `cosine`."""
    near = adjacency(keys, cosine)
    unseen = np.ones(len(keys), dtype=bool)
    clusters: list[list[int]] = []
    for start in range(len(keys)):
        if not unseen[start]:
            continue
        unseen[start] = False
        cluster, frontier = [start], [start]
        while frontier:
            reached = np.flatnonzero(near[frontier.pop()] & unseen)
            unseen[reached] = False
            found = [int(index) for index in reached]
            cluster += found
            frontier += found
        clusters.append(sorted(cluster))
    return clusters


def adjacency(keys: Array, cosine: float) -> NDArray[np.bool_]:
    """Return which of the unit `keys`, (N, d), are nearer to which than `cosine`: (N, N)."""
    near = np.empty((len(keys), len(keys)), dtype=bool)  # 100 MB for 10,000 episodes
    for start in range(0, len(keys), _BLOCK):
        near[start : start + _BLOCK] = keys[start : start + _BLOCK] @ keys.T > cosine
    return near
