"""Counting episodes into StoreStats.

Owns the histogram's bins. Knows nothing of where the episodes come from.
"""

from collections.abc import Iterable

from memory.store import Outline, StoreStats

BINS = 10


def counted(outlines: Iterable[Outline]) -> StoreStats:
    """Return the counts; means and times of nothing are None."""
    bins = [0] * BINS
    rewards, seen = 0.0, 0
    oldest = newest = None
    for one in outlines:
        bins[min(int(one.reward * BINS), BINS - 1)] += 1
        rewards += one.reward
        seen += one.seen
        oldest = one.created_at if oldest is None else min(oldest, one.created_at)
        newest = one.created_at if newest is None else max(newest, one.created_at)
    episodes = sum(bins)
    mean = rewards / episodes if episodes else None
    return StoreStats(episodes, seen, mean, tuple(bins), oldest, newest)
