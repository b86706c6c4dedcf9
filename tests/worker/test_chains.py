"""Chains of keys, whatever the blocks in which they are compared."""

import numpy as np
import pytest

from memory.episode import Array
from worker.chains import chains, first_of_alike

COSINE = 0.95


@pytest.fixture
def keys() -> Array:
    """More keys than are compared at a time, in loose strings of neighbours."""
    rng = np.random.default_rng(0)
    turns = rng.uniform(0, 2 * np.pi, 700)
    drawn = np.stack(
        [np.cos(turns), np.sin(turns), 3 * rng.integers(0, 4, 700), rng.normal(size=700)], axis=1
    )
    unit: Array = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    return unit


def test_two_keys_are_of_one_cluster_if_and_only_if_a_chain_leads_from_one_to_the_other(keys: Array) -> None:
    found = chains(keys, COSINE)
    assert sorted(index for cluster in found for index in cluster) == list(range(len(keys)))
    assert 1 < len(found) < len(keys)
    for cluster in found:
        reached, frontier = {cluster[0]}, {cluster[0]}
        while frontier:
            near = np.flatnonzero((keys[sorted(frontier)] @ keys.T > COSINE).any(axis=0)).tolist()
            frontier = set(near) - reached
            reached |= frontier
        assert sorted(reached) == cluster


def test_what_stays_is_unlike_and_all_else_is_like_something_before_that_stays(keys: Array) -> None:
    stays = first_of_alike(keys, COSINE)
    near = keys @ keys.T > COSINE
    for index in range(len(keys)):
        before = [one for one in stays if one < index and near[one, index]]
        assert bool(before) == (index not in stays)


def test_nothing_has_no_clusters() -> None:
    assert chains(np.zeros((0, 4), np.float32), COSINE) == []
