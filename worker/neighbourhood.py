"""Episodes by their keys: which ones are the same prompt.

Owns de-duplication. Knows nothing of sides or of training.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from memory.chains import adjacency
from memory.episode import Array, Episode

SAME_COSINE = 0.999
"""Keys this similar are one prompt asked twice: the better answer stays."""


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
    same = adjacency(stack_keys(ranked), SAME_COSINE)
    dropped = np.zeros(len(ranked), dtype=bool)
    kept = []
    for index, episode in enumerate(ranked):
        if not dropped[index]:
            alike = [index, *(index + 1 + np.flatnonzero(same[index, index + 1 :]))]
            dropped[alike] = True
            kept.append((episode, frozenset(digests[at] for at in alike)))
    return sorted(kept, key=lambda pair: (pair[0].created_at, pair[0].id))


def _rank(episode: Episode) -> tuple[float, float, str]:
    return -episode.reward, -episode.created_at.timestamp(), episode.id
