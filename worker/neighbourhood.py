"""Neighbourhoods of episodes: which ones are the same, and which are near-twins.

Owns de-duplication and clustering by the cosine of keys. Knows nothing of sides or of training.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from memory.episode import Array, Episode
from memory.prior import DEFAULT_FLOOR

SAME_COSINE = 0.999
"""Keys this similar are one prompt asked twice: the better answer stays."""

KIND_COSINE = DEFAULT_FLOOR
"""Chains of keys above this cosine are one kind of task. Measured with centred keys, on Qwen2.5-Coder-0.5B
word problems are at 0.61 and more to each other, headlines at 0.90, one to the other at 0.06 at most
(ADR 0019)."""

_BLOCK = 1024


def prompt_digest(episode: Episode) -> str:
    """Return sixteen hex digits that name a prompt by its tokens, whatever the episode's id."""
    tokens = np.asarray(episode.prompt_token_ids, dtype=np.int64)
    return hashlib.sha256(tokens.tobytes()).hexdigest()[:16]


def stack_keys(episodes: Sequence[Episode]) -> Array:
    """Return keys of norm 1, (N, d)."""
    keys = np.stack([episode.key for episode in episodes]).astype(np.float32)
    unit: Array = keys / np.maximum(np.linalg.norm(keys, axis=1, keepdims=True), 1e-12)
    return unit


def deduplicated(episodes: Iterable[Episode]) -> list[Episode]:
    """Return one episode per prompt, in order of age: the one of the best reward, then the newest."""
    return [episode for episode, _ in merged(episodes)]


def merged(episodes: Iterable[Episode]) -> list[tuple[Episode, frozenset[str]]]:
    """Return the same, and beside each the digests of all prompts that it stands for."""
    best: dict[str, Episode] = {}
    for episode in sorted(episodes, key=_rank):
        best.setdefault(prompt_digest(episode), episode)
    ranked = list(best.values())  # best first
    if not ranked:
        return []
    digests = list(best)
    same = _adjacency(stack_keys(ranked), SAME_COSINE)
    dropped = np.zeros(len(ranked), dtype=bool)
    kept = []
    for index, episode in enumerate(ranked):
        if not dropped[index]:
            alike = [index, *(index + 1 + np.flatnonzero(same[index, index + 1 :]))]
            dropped[alike] = True
            kept.append((episode, frozenset(digests[at] for at in alike)))
    return sorted(kept, key=lambda pair: (pair[0].created_at, pair[0].id))


def neighbourhoods(keys: Array, threshold: float) -> list[list[int]]:
    """Return the clusters of `keys` (N, d): chains of keys whose cosine is above `threshold`."""
    near = _adjacency(keys, threshold)
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


def _adjacency(keys: Array, threshold: float) -> NDArray[np.bool_]:
    near = np.empty((len(keys), len(keys)), dtype=bool)  # 100 MB for 10,000 episodes
    for start in range(0, len(keys), _BLOCK):
        near[start : start + _BLOCK] = keys[start : start + _BLOCK] @ keys.T > threshold
    return near


def _rank(episode: Episode) -> tuple[float, float, str]:
    return -episode.reward, -episode.created_at.timestamp(), episode.id
