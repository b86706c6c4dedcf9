"""Counting episodes into StoreStats.

Owns the histogram's bins. Knows nothing of where the rewards come from.
"""

from datetime import datetime

from memory.store import StoreStats

BINS = 10


class Tally:
    """Rewards and times seen so far."""

    def __init__(self) -> None:
        self._bins = [0] * BINS
        self._sum = 0.0
        self._seen = 0
        self._oldest: datetime | None = None
        self._newest: datetime | None = None

    def add(self, reward: float, created_at: str, seen: int) -> None:
        """Count one episode; `created_at` is in ISO 8601, `seen` how often its prompt came."""
        self._seen += seen
        self._bins[min(int(reward * BINS), BINS - 1)] += 1
        self._sum += reward
        time = datetime.fromisoformat(created_at)
        self._oldest = time if self._oldest is None else min(self._oldest, time)
        self._newest = time if self._newest is None else max(self._newest, time)

    def stats(self) -> StoreStats:
        """Return the counts; means and times of nothing are None."""
        episodes = sum(self._bins)
        mean = self._sum / episodes if episodes else None
        return StoreStats(episodes, self._seen, mean, tuple(self._bins), self._oldest, self._newest)
