"""Adds episodes until it is killed, and acknowledges each batch on its standard output.

Run by tests/memory/test_store_crash.py: `store_victim.py FOLDER SEED FLUSH_EVERY INDEX_FROM PAUSE_S`.
"""

import sys
import time
from pathlib import Path

import numpy as np

import memory.edge_shard
from memory.edge_store import EdgeStore
from memory.episode import Episode

SPACE, LENGTH, HIDDEN = "space-a", 4, 32


def vectors(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the key and the latent of episode `seed`; the test draws the same ones."""
    rng = np.random.default_rng(seed)
    key = rng.normal(size=HIDDEN).astype(np.float32)
    return key / np.linalg.norm(key), rng.normal(size=(LENGTH, HIDDEN)).astype(np.float32)


def episode(seed: int) -> Episode:
    """Return an episode that carries its seed as its answer's tokens."""
    key, latent = vectors(seed)
    text = "x" * (seed * 37 % 3000)
    return Episode(SPACE, key, latent, 0.5, {"format": 1.0}, (1, 2), (seed,), text, text)


def main() -> None:
    """Add batches of one to three episodes for ever."""
    folder, seed, pause_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[5])
    memory.edge_shard.FLUSH_EVERY = int(sys.argv[3])
    store = EdgeStore(folder, space=SPACE, length=LENGTH, hidden_size=HIDDEN, index_from=int(sys.argv[4]))
    print("ready", flush=True)
    while True:
        batch = [episode(seed + i) for i in range(1 + seed % 3)]
        store.add(batch)
        for added in batch:
            print(added.answer_token_ids[0], added.id, flush=True)
        seed += len(batch)
        time.sleep(pause_s)


if __name__ == "__main__":
    main()
