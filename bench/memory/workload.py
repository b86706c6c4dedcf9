"""Episodes and queries that look like real ones to a store.

Owns how they are drawn. Knows nothing of stores or of time.

Keys fall into clusters, as those of real tasks do: the cosine of two keys of one cluster is between 0.63
and 0.84 (word problems and topic classification, docs/decisions/latents.md), that of different clusters
about 0. Within a cluster they vary in every direction alike, which is harder for a graph of neighbours than
real keys.
"""

from collections.abc import Iterator

import numpy as np

from memory.episode import Array, Episode

CLUSTERS = 64
WIDEST, TIGHTEST = 0.63, 0.84
LATENTS = 64
"""Different latents; what is in them makes no difference to a store."""
PROMPT_TOKENS, ANSWER_TOKENS = 64, 24


class Workload:
    """An endless stream of episodes of one space, seeded.

    Args:
        space: id of the space.
        hidden_size: d.
        length: L.
    """

    def __init__(self, space: str, hidden_size: int, length: int, seed: int) -> None:
        self._space, self.hidden_size = space, hidden_size
        self._random = np.random.default_rng(seed)
        self._centres = _unit(self._normal(CLUSTERS, hidden_size))
        cosines = self._random.uniform(WIDEST, TIGHTEST, CLUSTERS)
        self._spread = np.sqrt(1 / cosines - 1).astype(np.float32)
        """Length of a key's way from its centre: cos = 1 / (1 + spread²)."""
        shares = 1 / np.arange(1, CLUSTERS + 1)
        self._shares = shares / shares.sum()
        self._latents = 0.1 * self._normal(LATENTS, length, hidden_size)

    def keys(self, count: int) -> Array:
        """Return keys of norm 1, (count, d). Few clusters have many of them, as in real traffic."""
        chosen = self._random.choice(CLUSTERS, count, p=self._shares)
        way = _unit(self._normal(count, self.hidden_size)) * self._spread[chosen, None]
        return _unit(self._centres[chosen] + way)

    def episodes(self, count: int, batch: int) -> Iterator[list[Episode]]:
        """Yield `count` new episodes in batches."""
        while count > 0:
            size = min(batch, count)
            count -= size
            yield [self._episode(key) for key in self.keys(size)]

    def _episode(self, key: Array) -> Episode:
        reward = float(self._random.uniform(0.5, 1.0))
        tokens = self._random.integers(0, 32_000, PROMPT_TOKENS + ANSWER_TOKENS).tolist()
        return Episode(
            space=self._space,
            key=key,
            latent=self._latents[self._random.integers(LATENTS)],
            reward=reward,
            signals={"consistency": reward, "confidence": reward},
            prompt_token_ids=tuple(tokens[:PROMPT_TOKENS]),
            answer_token_ids=tuple(tokens[PROMPT_TOKENS:]),
            prompt_text="x" * (4 * PROMPT_TOKENS),
            answer_text="x" * (4 * ANSWER_TOKENS),
        )

    def _normal(self, *shape: int) -> Array:
        return self._random.standard_normal(shape, dtype=np.float32)


def _unit(vectors: Array) -> Array:
    norms: Array = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / norms
