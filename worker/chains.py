"""Chains of keys: what is near to what, and through what.

Owns clustering by single linkage of cosines. Knows nothing of what keys stand for. Keys are compared block by
block: N of them take memory for N, and time for N².
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from memory.episode import Array

_BLOCK = 256


def chains(keys: Array, cosine: float) -> list[list[int]]:
    """Return the clusters of unit `keys`, (N, d), by index: chains of keys whose cosine is above `cosine`."""
    owners = np.arange(len(keys))  # the first of its cluster as far as it is known
    for at, near in _nearer(keys, cosine):
        found = owners[at:][near]
        if (found != owners[at]).any():
            joined = np.unique(np.append(found, owners[at]))
            owners[np.isin(owners, joined)] = joined[0]
    order = np.argsort(owners, kind="stable")
    starts = np.flatnonzero(np.diff(owners[order])) + 1
    return [cluster.tolist() for cluster in np.split(order, starts)] if len(keys) else []


def first_of_alike(keys: Array, cosine: float) -> list[int]:
    """Return the indices of unit `keys`, (N, d), but of those nearer than `cosine` to an earlier of these."""
    stays = np.ones(len(keys), dtype=bool)
    for at, near in _nearer(keys, cosine):
        if stays[at]:
            stays[at + 1 :] &= ~near[1:]
    return [int(index) for index in np.flatnonzero(stays)]


def _nearer(keys: Array, cosine: float) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Yield each index, and which of the keys from it on are nearer to it than `cosine`."""
    for start in range(0, len(keys), _BLOCK):
        near = keys[start : start + _BLOCK] @ keys[start:].T > cosine
        for offset, row in enumerate(near):
            yield start + offset, row[offset:]
