"""Episodes and stores that the memory tests share."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from memory.episode import TENANT, Array, Episode, new_id
from memory.state import State
from memory.store import EpisodeStore, Recalled, recall

SPACE = "space-a"
LENGTH, HIDDEN = 4, 32


def recall_from(store: EpisodeStore, key: Array, *, tenant: str, k: int, floor: float) -> list[Recalled]:
    """Return the up to `k` nearest episodes of cosine ≥ `floor`."""
    return recall(store, store.near(key, tenant=tenant, k=k, floor=floor), k)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def unit(rng: np.random.Generator) -> Callable[[], Array]:
    """Random keys of norm 1, (d,)."""

    def draw() -> Array:
        key = rng.normal(size=HIDDEN).astype(np.float32)
        return (key / np.linalg.norm(key)).astype(np.float32)

    return draw


@pytest.fixture
def make_episode(rng: np.random.Generator, unit: Callable[[], Array]) -> Callable[..., Episode]:
    """Episodes of SPACE with random vectors; keywords replace fields."""

    def make(**fields: Any) -> Episode:
        values: dict[str, Any] = {
            "space": SPACE,
            "key": unit(),
            "latent": rng.normal(size=(LENGTH, HIDDEN)).astype(np.float32),
            "reward": 0.75,
            "signals": {"consistency": 1.0, "format": 0.5},
            "prompt_token_ids": (1, 2, 3),
            "answer_token_ids": (4, 5),
            "prompt_text": "Wie viele Äpfel? 🍎",
            "answer_text": "zwölf",
            "id": new_id(fields.get("tenant", TENANT)),
        }
        return Episode(**(values | fields))

    return make


@pytest.fixture
def state(state_url: str) -> Iterator[State]:
    """The state in an empty database."""
    with State(state_url) as opened:
        yield opened
