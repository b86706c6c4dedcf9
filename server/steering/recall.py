"""What memory says about a request.

Owns what the store is asked, and what is done when it does not answer. Knows nothing of what becomes of
recalled latents.
"""

import logging
from dataclasses import dataclass
from functools import partial

import torch

from config.settings import Settings
from memory.episode import TENANT, Array, StoreUnavailableError, prompt_id
from memory.prior import CLUSTER_COSINE, DEFAULT_RECALL_FLOOR, Prior
from memory.store import REACH, EpisodeStore, Neighbour, Recalled, recall
from model.space import LatentRejectedError, LatentSpace
from server.steering.choose import LOOKED_AT
from server.steering.metrics import Metrics
from server.steering.store_access import StoreAccess
from server.steering.transfer import base_is_known
from server.steering.work import Work

logger = logging.getLogger(__name__)


@dataclass
class RecallCounts:
    """Recalls since the start, for the statistics."""

    recalls: int = 0
    """Recalls that the store answered."""
    hits: int = 0
    """Recalls that found an episode above the floor."""

    @property
    def hit_rate(self) -> float | None:
        """Share of recalls that found something; None before the first."""
        return self.hits / self.recalls if self.recalls else None


class Recall:
    """Finds neighbours. A store that is away is noted in the work, counted and logged, never raised."""

    def __init__(
        self,
        store: StoreAccess,
        space: LatentSpace,
        settings: Settings,
        metrics: Metrics,
        counts: RecallCounts,
    ) -> None:
        self._store, self._space, self._settings = store, space, settings
        self._metrics, self._counts = metrics, counts
        self._was_filled = False

    async def is_filled(self, work: Work) -> bool:
        """Return whether there is anything to recall. The store is asked until it said yes once."""
        if not self._was_filled:
            try:
                self._was_filled = await self._store.call(lambda store: store.count(tenant=TENANT)) > 0
            except StoreUnavailableError as error:
                self._miss(work, error)
        return self._was_filled

    async def near(self, work: Work, key: Array, *, covered: bool) -> tuple[list[Recalled], list[Neighbour]]:
        """Return what is recalled for `key`, (d,), and all neighbours that were looked at, nearest first.

        Recalled are up to k episodes whose latent earned its place, and on top of the same prior where this
        key is `covered` by one (ADR 0010); the others tell how steering went.
        """
        options, settings = work.options, self._settings
        k = settings.recall_k if options.k is None else options.k
        try:
            with work.stage("recall"):
                work.floor = self._floor(work, covered)
                look = partial(_look, work.prior, key, k, work.floor, covered=covered)
                found, neighbours = await self._store.call(look)
        except StoreUnavailableError as error:
            self._miss(work, error)
            return [], []
        recalled = [near for near in found if self._fits(near)]
        self._metrics.recalls.labels("hit" if recalled else "miss").inc()
        self._counts.recalls += 1
        if recalled:
            self._counts.hits += 1
            self._metrics.similarity.observe(max(near.similarity for near in recalled))
        return recalled, neighbours

    async def alike(self, work: Work, key: Array) -> list[tuple[float, ...]]:
        """Return what the model thought of the same choices in requests like this, whose key is `key`, (d,).

        Log-probabilities, one for each choice; none when the store does not answer.
        """
        choices = work.prompt.scored_choices
        try:
            found = await self._store.call(
                lambda store: store.near(key, tenant=TENANT, k=LOOKED_AT, floor=CLUSTER_COSINE)
            )
        except StoreUnavailableError as error:
            self._miss(work, error)
            return []
        own = prompt_id(self._space.id, TENANT, work.prompt.token_ids, work.prompt.held_to)
        return [
            near.choice_log_probabilities
            for near in found
            if near.choices == choices and near.choice_log_probabilities and near.id != own
        ]

    def _floor(self, work: Work, covered: bool) -> float:
        """Return the request's floor, else the operator's, else what the night learned of its like."""
        for named in (work.options.floor, self._settings.recall_floor):
            if named is not None:
                return named
        return work.prior.recall_floor if work.prior and covered else DEFAULT_RECALL_FLOOR

    def _fits(self, near: Recalled) -> bool:
        try:
            self._space.check(torch.as_tensor(near.episode.latent), near.episode.space)
        except LatentRejectedError as error:
            logger.error("episode %s is not used: %s", near.episode.id, error)
            return False
        return True

    def _miss(self, work: Work, error: StoreUnavailableError) -> None:
        work.store_answers = False
        self._metrics.recalls.labels("unavailable").inc()
        logger.warning("trace %s goes on without recall: %s", work.trace_id, error)


def _look(
    prior: Prior | None, key: Array, k: int, floor: float, store: EpisodeStore, *, covered: bool
) -> tuple[list[Recalled], list[Neighbour]]:
    """Return what is recalled, and all neighbours; blocks."""
    neighbours = store.near(key, tenant=TENANT, k=REACH * k, floor=floor)
    if prior is None:
        return recall(store, neighbours, k), neighbours
    if covered:
        same = [near for near in neighbours if near.prior_version == prior.version]
        return recall(store, same, k), neighbours
    # Which of them lie where the prior speaks is known from their keys only.
    found = recall(store, neighbours, len(neighbours))
    return [near for near in found if base_is_known(near.episode, prior)][:k], neighbours
