"""The promise of an episode store.

Owns the protocol that both stores keep: `memory/edge_store.py` (Qdrant Edge, in process) and
`memory/qdrant_store.py` (a Qdrant server through qdrant-client). One congruence suite runs the
same scenarios on both.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from memory.episode import Array, Episode
from memory.listing import Page, Place
from memory.prior import Coverage

BINS = 10
"""Of the histogram of rewards."""


@dataclass(frozen=True, eq=False)
class Recalled:
    """An episode and how similar its key is to the query (cosine)."""

    episode: Episode
    similarity: float


@dataclass(frozen=True)
class Neighbour:
    """What a similar episode tells without its vectors, which cost ten times more to read than all else."""

    id: str
    similarity: float
    """Cosine of its key to the query."""
    latent_earned: bool
    start_lift: float | None
    prior_version: str | None
    choices: tuple[str, ...] = ()
    choice_log_probabilities: tuple[float, ...] = ()
    held_log_probabilities: tuple[float, ...] = ()


@dataclass(frozen=True)
class Outline:
    """What an episode tells without its vectors, tokens and texts, which take ten times more to read."""

    id: str
    reward: float
    held_to_choices: bool
    """Whether a grammar held its answer to a few strings."""
    seen: int
    """How often its prompt came to be remembered."""
    seen_last: datetime
    created_at: datetime
    replayable: bool = True
    """Whether its tokens are kept, so that a night can learn from it."""


@dataclass(frozen=True)
class StoreStats:
    """Counts and the reward distribution of one (space, tenant)."""

    episodes: int
    seen: int
    """How often the prompts of these came to be remembered, repetitions included."""
    reward_mean: float | None
    reward_histogram: tuple[int, ...]
    """Episodes per tenth of the reward's range: [0, 0.1), …, [0.9, 1]."""
    oldest: datetime | None
    newest: datetime | None

    @classmethod
    def of(cls, outlines: Iterable[Outline]) -> "StoreStats":
        """Count episodes; means and times of nothing are None."""
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
        return cls(episodes, seen, rewards / episodes if episodes else None, tuple(bins), oldest, newest)


@dataclass(frozen=True)
class Where:
    """Which episodes: those that are all of this. What is None asks nothing."""

    tenant: str | None = None
    reward_min: float | None = None
    reward_max: float | None = None
    effort: str | None = None
    search: str | None = None
    since: datetime | None = None
    """Created then or later."""
    until: datetime | None = None
    """Created before."""
    trace_id: str | None = None
    """Of the request whose answer is in it."""
    region: Coverage | None = None
    """Whose key lies in it."""


EVERYWHERE = Where()


class EpisodeStore(Protocol):
    """Durable episodes, recalled by similarity. Thread-safe; calls block.

    A store serves one space, given when it is opened, so that recall across spaces cannot happen.
    Every method may raise StoreUnavailableError.
    """

    def add(self, episodes: Sequence[Episode]) -> None:
        """Store episodes; when it returns, they survive the death of the process.

        One whose id is there already is merged with it (`memory/merge.py`).

        Raises:
            EpisodeRejectedError: naming the field; then nothing of the batch is stored.
        """
        ...

    def near(self, key: Array, *, tenant: str, k: int, floor: float) -> list[Neighbour]:
        """Return up to `k` episodes of cosine ≥ `floor`, most similar first. `key` is (d,)."""
        ...

    def get(self, episode_id: str) -> Episode | None:
        """Return one episode, vectors included."""
        ...

    def fetch(self, episode_ids: Sequence[str]) -> list[Episode]:
        """Return those of the episodes that there are, vectors included, in any order."""
        ...

    def scroll(self, *, tenant: str | None = None, batch: int = 256) -> Iterator[Episode]:
        """Yield all episodes, oldest first within a batch, vectors included."""
        ...

    def outlines(self, where: Where = EVERYWHERE) -> Iterator[Outline]:
        """Yield what there is of each episode beside its vectors, tokens and texts, in any order."""
        ...

    def outlines_of(self, episode_ids: Sequence[str]) -> list[Outline]:
        """Return that of those of the episodes that there are, in any order."""
        ...

    def page(self, where: Where, *, limit: int, after: Place | None = None) -> Page:
        """Return up to `limit` episodes without vectors, newest first, and where the next page begins.

        Whoever goes from page to page meets each episode once that is there from the first to the last,
        whatever comes and goes meanwhile. One whose `created_at` moves counts as new.

        Args:
            where: Which.
            limit: 1 or more.
            after: Where the page before ended; None: from the newest on.
        """
        ...

    def delete(self, episode_ids: Sequence[str]) -> int:
        """Delete episodes and return how many there were."""
        ...

    def compact(self) -> bool:
        """Have files hold no more what was deleted, and return whether they did; takes time, writes wait.

        Raises:
            NoRoomError: the disk is too full for that; nothing changes.
        """
        ...

    def count(self, *, tenant: str | None = None, since: datetime | None = None) -> int:
        """Return how many episodes there are; with `since` those created after it, and not in the future."""
        ...

    def stats(self, *, tenant: str | None = None) -> StoreStats:
        """Return counts and the reward distribution."""
        ...

    def close(self) -> None:
        """Flush and release files or connections."""
        ...


REACH = 4
"""Neighbours that are looked at for each one that is recalled: most memories hold an answer without a latent
that earned its place."""


def recall(store: EpisodeStore, neighbours: Sequence[Neighbour], k: int) -> list[Recalled]:
    """Return the up to `k` nearest neighbours whose latent earned its place, with all they hold.

    Raises:
        StoreUnavailableError: the store failed.
    """
    earned = [near for near in neighbours if near.latent_earned][:k]
    episodes = (
        {episode.id: episode for episode in store.fetch([near.id for near in earned])} if earned else {}
    )
    # One that was deleted a moment ago is left out.
    return [Recalled(episodes[near.id], near.similarity) for near in earned if near.id in episodes]
