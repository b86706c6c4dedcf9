"""A store that grows, measured at each size.

Owns what is timed: adding batches, the graph of the keys, opening, and recall. Knows nothing of what is
shown.

Two recalls at each size. `grown`: the store has been open since the last size, and a graph that it builds
beside itself is done. `reopened`: closed and opened again, as after a restart of the server.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.memory.workload import Workload
from bench.processes import resident_mib
from bench.result import quantiles_ms
from memory.edge_store import EdgeStore
from memory.episode import Array
from memory.store import REACH, Recalled, recall

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
    store = open_store()
    try:
        held = 0
        for size in plan.sizes:
            inserting_s = _fill(store, workload, size - held, plan.batch, progress, f"insert to {size}")
            indexing_s = _settle(store, progress, f"graph at {size}")
            queries = workload.keys(WARM_UP + plan.queries)
            grown_s, grown = _recall(store, queries, plan, progress, f"recall at {size}")
            store.close()
            begun = time.perf_counter()
            progress(f"reopen at {size}", 0, 1)
            store = open_store()
            opening_s = time.perf_counter() - begun
            progress(f"reopen at {size}", 1, 1)
            indexing_s += _settle(store, progress, f"graph at {size}, reopened")
            reopened_s, reopened = _recall(store, queries, plan, progress, f"again at {size}")
            rows.append(
                {
                    "episodes": store.count(tenant=TENANT),
                    "inserted": size - held,
                    "insert_per_s": round((size - held) / inserting_s, 1),
                    "indexing_s": round(indexing_s, 3),
                    "indexed": store.indexed(),
                    "grown": quantiles_ms(grown_s),
                    "open_s": round(opening_s, 3),
                    "reopened": quantiles_ms(reopened_s),
                    "recalled_mean": round(sum(map(len, reopened)) / len(reopened), 2),
                    "same_as_grown": _overlap(grown, reopened),
                    "disk_mib": _disk(folder) >> 20,
                    "process_mib": resident_mib(),
                }
            )
            held = size
    finally:
        store.close()
    return rows


def _fill(
    store: EdgeStore, workload: Workload, count: int, batch: int, progress: Progress, phase: str
) -> float:
    """Add `count` episodes and return the seconds spent in the store."""
    spent, done = 0.0, 0
    for episodes in workload.episodes(count, batch):
        begun = time.perf_counter()
        store.add(episodes)
        spent += time.perf_counter() - begun
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
    store: EdgeStore, queries: Array, plan: Plan, progress: Progress, phase: str
) -> tuple[list[float], list[list[Recalled]]]:
    seconds, found = [], []
    for at, key in enumerate(queries, start=1):
        begun = time.perf_counter()
        near = store.near(key, tenant=TENANT, k=REACH * plan.k, floor=plan.floor)
        recalled = recall(store, near, plan.k)
        took = time.perf_counter() - begun
        if at > WARM_UP:
            seconds.append(took)
            found.append(recalled)
        progress(phase, at, len(queries))
    return seconds, found


def _overlap(before: Sequence[Sequence[Recalled]], after: Sequence[Sequence[Recalled]]) -> float | None:
    """Return which share of the episodes recalled before is recalled after; None when there were none."""
    pairs = [
        ({near.episode.id for near in a}, {near.episode.id for near in b})
        for a, b in zip(before, after, strict=True)
    ]
    wanted = sum(len(a) for a, _ in pairs)
    return round(sum(len(a & b) for a, b in pairs) / wanted, 4) if wanted else None


def _disk(folder: Path) -> int:
    """Return the bytes that the files of a folder really take."""
    return sum(512 * path.stat().st_blocks for path in folder.rglob("*") if path.is_file())
