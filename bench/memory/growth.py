"""A store that grows, measured at each size.

Owns what is timed: adding batches, the graph of the keys, opening, and recall. Knows nothing of what is
shown.

Beside each recall numpy scans the same keys for the same query: how quick a memory is, and whether it finds
what is nearest, is judged by that.

Two recalls at each size. `grown`: the store has been open since the last size, and a graph that it builds
beside itself is done. `reopened`: closed and opened again, as after a restart of the server.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.memory.workload import Workload
from bench.processes import resident_mib
from bench.statistics import quantiles_ms
from memory.edge_store import EdgeStore
from memory.episode import Array, Episode
from memory.store import REACH, recall

TENANT = "default"
WARM_UP = 20
"""Queries before those that are timed."""

Progress = Callable[[str, int, int], None]
"""Told the phase, what is done of it and what there is to do."""


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    sizes: Sequence[int]
    """Episodes, rising."""
    queries: int
    batch: int
    """Episodes per `add`."""
    k: int
    floor: float


def grow(
    open_store: Callable[[], EdgeStore], folder: Path, workload: Workload, plan: Plan, progress: Progress
) -> list[dict[str, Any]]:
    """Return one row per size. `open_store` opens the same, at first empty, store in `folder`."""
    rows = []
    store, scan = open_store(), Scan(plan.sizes[-1], workload.hidden_size)
    try:
        for size in plan.sizes:
            added = size - len(scan.ids)
            inserting_s = _fill(store, scan, workload, added, plan.batch, progress, f"insert to {size}")
            indexing_s = _settle(store, progress, f"graph at {size}")
            queries = workload.keys(WARM_UP + plan.queries)
            grown = _recall(store, scan, queries, plan, progress, f"recall at {size}")
            store.close()
            begun = time.perf_counter()
            progress(f"reopen at {size}", 0, 1)
            store = open_store()
            opening_s = time.perf_counter() - begun
            progress(f"reopen at {size}", 1, 1)
            indexing_s += _settle(store, progress, f"graph at {size}, reopened")
            reopened = _recall(store, scan, queries, plan, progress, f"again at {size}")
            rows.append(
                {
                    "episodes": store.count(tenant=TENANT),
                    "inserted": added,
                    "insert_per_s": round(added / inserting_s, 1),
                    "indexing_s": round(indexing_s, 3),
                    "indexed": store.indexed(),
                    "open_s": round(opening_s, 3),
                    "grown": grown,
                    "reopened": reopened,
                    "disk_mib": _disk(folder) >> 20,
                    "process_mib": resident_mib() - (scan.nbytes >> 20),
                }
            )
    finally:
        store.close()
    return rows


class Scan:
    """An exact scan by numpy of all keys, (n, d), which it holds as float32."""

    def __init__(self, most: int, hidden_size: int) -> None:
        self._keys: Array = np.empty((most, hidden_size), np.float32)
        self.ids: list[str] = []

    def add(self, episodes: Sequence[Episode]) -> None:
        """Hold the keys of these as well."""
        for episode in episodes:
            self._keys[len(self.ids)] = episode.key
            self.ids.append(episode.id)

    def near(self, key: Array, k: int, floor: float) -> list[str]:
        """Return ids of the up to `k` nearest of cosine ≥ `floor`, nearest first. `key` is (d,)."""
        cosines = self._keys[: len(self.ids)] @ key
        k = min(k, len(cosines))
        nearest = np.argpartition(cosines, -k)[-k:]
        nearest = nearest[np.argsort(-cosines[nearest])]
        return [self.ids[at] for at in nearest if cosines[at] >= floor]

    @property
    def nbytes(self) -> int:
        """Bytes of the keys that it holds by now."""
        return self._keys[: len(self.ids)].nbytes


def _fill(
    store: EdgeStore,
    scan: Scan,
    workload: Workload,
    count: int,
    batch: int,
    progress: Progress,
    phase: str,
) -> float:
    """Add `count` episodes and return the seconds spent in the store."""
    spent, done = 0.0, 0
    for episodes in workload.episodes(count, batch):
        begun = time.perf_counter()
        store.add(episodes)
        spent += time.perf_counter() - begun
        scan.add(episodes)
        done += len(episodes)
        progress(phase, done, count)
    return spent


def _settle(store: EdgeStore, progress: Progress, phase: str) -> float:
    """Wait for the graph that is being built, if one is, and return the seconds."""
    begun = time.perf_counter()
    progress(phase, 0, 1)
    store.settle()
    progress(phase, 1, 1)
    return time.perf_counter() - begun


def _recall(
    store: EdgeStore, scan: Scan, queries: Array, plan: Plan, progress: Progress, phase: str
) -> dict[str, Any]:
    """Return times of recalls, of scans in turn with them, and what share of what these find is recalled."""
    recalling_s, scanning_s = [], []
    recalled = nearest = found = 0
    for at, key in enumerate(queries, start=1):
        begun = time.perf_counter()
        near = store.near(key, tenant=TENANT, k=REACH * plan.k, floor=plan.floor)
        episodes = recall(store, near, plan.k)
        between = time.perf_counter()
        exact = set(scan.near(key, plan.k, plan.floor))
        ended = time.perf_counter()
        if at > WARM_UP:
            recalling_s.append(between - begun)
            scanning_s.append(ended - between)
            recalled += len(episodes)
            nearest += len(exact)
            found += len(exact & {one.episode.id for one in episodes})
        progress(phase, at, len(queries))
    times, scan_times = quantiles_ms(recalling_s), quantiles_ms(scanning_s)
    return {
        **times,
        "scan": scan_times,
        "p95_of_scan": round(times["p95_ms"] / scan_times["p95_ms"], 3),
        "recalled_mean": round(recalled / plan.queries, 2),
        "exact": round(found / nearest, 4) if nearest else None,
    }


def _disk(folder: Path) -> int:
    """Return the bytes that the files of a folder really take."""
    return sum(512 * path.stat().st_blocks for path in folder.rglob("*") if path.is_file())
