"""What memory says about a request.

Owns what the store is asked, and what is done when it does not answer. Knows nothing of what becomes of
recalled latents.
"""

import logging
from functools import partial

import torch

from memory.episode import Array, Episode, StoreUnavailableError, prompt_id
from memory.prior import CLUSTER_COSINE, DEFAULT_RECALL_FLOOR, Prior
from memory.store import REACH, EpisodeStore, Neighbour, Recalled, recall
from model.space import LatentRejectedError, LatentSpace
from server.steering.metrics import Metrics
from server.steering.request import Request
from server.steering.search.choose import LOOKED_AT, Thought
from server.steering.store_access import StoreAccess

logger = logging.getLogger(__name__)


class Recall:
    """Finds neighbours. A store that is away is noted in the work, counted and logged, never raised."""

    def __init__(
        self,
        store: StoreAccess,
        space: LatentSpace,
        metrics: Metrics,
    ) -> None:
        self._store, self._space, self._metrics = store, space, metrics
        self._filled: set[str] = set()
        """Tenants that have had something to recall."""

    async def is_filled(self, request: Request) -> bool:
        """Return whether there is anything to recall. The store is asked until it said yes once."""
        tenant = request.options.tenant
        if tenant not in self._filled:
            try:
                if await self._store.call(lambda store: store.count(tenant=tenant)) > 0:
                    self._filled.add(tenant)
            except StoreUnavailableError as error:
                self._miss(request, error)
        return tenant in self._filled

    async def near(
        self, request: Request, key: Array, *, covered: bool
    ) -> tuple[list[Recalled], list[Neighbour]]:
        """Return what is recalled for `key`, (d,), and all neighbours that were looked at, nearest first.

        Recalled are up to k episodes whose latent earned its place, and on top of the same prior where this
        key is `covered` by one (decisions/memory.md); the others tell how steering went.
        """
        try:
            with request.stage("recall"):
                request.floor = self._floor(request, covered)
                options = request.options
                look = partial(
                    _look, request.prior, key, options.tenant, options.k, request.floor, covered=covered
                )
                nearest, neighbours = await self._store.call(look)
        except StoreUnavailableError as error:
            self._miss(request, error)
            return [], []
        recalled = [near for near in nearest if self._fits(near)]
        self._metrics.tally("recalls", "hit" if recalled else "miss", request.options.tenant)
        if recalled:
            self._metrics.similarity.observe(max(near.similarity for near in recalled))
        return recalled, neighbours

    async def alike(self, request: Request, key: Array) -> list[Thought]:
        """Return what the model thought of the same choices in requests like this, whose key is `key`, (d,).

        None when the store does not answer.
        """
        prompt, tenant = request.prompt, request.options.tenant
        try:
            nearest = await self._store.call(
                lambda store: store.near(key, tenant=tenant, k=LOOKED_AT, floor=CLUSTER_COSINE)
            )
        except StoreUnavailableError as error:
            self._miss(request, error)
            return []
        own = prompt_id(self._space.id, tenant, prompt.token_ids, prompt.held_to)
        return [
            Thought(near.choice_log_probabilities, near.held_log_probabilities)
            for near in nearest
            if near.choices == prompt.scored_choices and near.choice_log_probabilities and near.id != own
        ]

    def _floor(self, request: Request, covered: bool) -> float:
        """Return the request's floor, else the operator's, else what the night learned of its like."""
        if request.options.floor is not None:
            return request.options.floor
        return request.prior.recall_floor if request.prior and covered else DEFAULT_RECALL_FLOOR

    def _fits(self, near: Recalled) -> bool:
        try:
            self._space.check(torch.as_tensor(near.episode.latent), near.episode.space)
        except LatentRejectedError as error:
            logger.error("episode %s is not used: %s", near.episode.id, error)
            return False
        return True

    def _miss(self, request: Request, error: StoreUnavailableError) -> None:
        request.store_answers = False
        self._metrics.tally("recalls", "unavailable", request.options.tenant)
        logger.warning("trace %s goes on without recall: %s", request.trace_id, error)


def _look(
    prior: Prior | None,
    key: Array,
    tenant: str,
    k: int,
    floor: float,
    store: EpisodeStore,
    *,
    covered: bool,
) -> tuple[list[Recalled], list[Neighbour]]:
    """Return what is recalled, and all neighbours; blocks."""
    neighbours = store.near(key, tenant=tenant, k=REACH * k, floor=floor)
    if prior is None:
        return recall(store, neighbours, k), neighbours
    if covered:
        same = [near for near in neighbours if near.prior_version == prior.version]
        return recall(store, same, k), neighbours
    # Which of them lie where the prior speaks is known from their keys only.
    nearest = recall(store, neighbours, len(neighbours))
    return [near for near in nearest if _base_is_known(near.episode, prior)][:k], neighbours


def _base_is_known(episode: Episode, prior: Prior) -> bool:
    """Return whether the prior of now gives the base that the episode's latent was found from.

    It does when it is the same version. Where it does not speak the base is neutral, and the latent counts
    whole, whatever it was found from. Elsewhere a latent that was found on top of an older prior, less what
    the prior of now gives, would undo what the night has learned since (decisions/memory.md).
    """
    return episode.prior_version == prior.version or not prior.covers(episode.key)
