"""The sides of a night: episodes to train on, to stop by, and to judge by.

Owns the rule that near-twins stand on one side, and that what the prior has learned from in earlier
nights does not judge it. Knows nothing of models.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

from memory.episode import Episode
from worker.errors import TooFewEpisodesError
from worker.neighbourhood import deduplicated, neighbourhoods, prompt_digest, stack_keys

logger = logging.getLogger(__name__)

TWIN_COSINES = (0.97, 0.98, 0.99, 0.995)
"""Tried in turn. Prompts that share a long instruction are similar however they differ, and with many
of them chains of near-twins swallow everything; then only closer ones count as twins."""

MIN_HOLDOUT = 5
"""Fewest neighbourhoods that can judge: with four, the 95 % interval held the truth in 85 % of trials,
with five in 92 %."""

MIN_VALIDATION = 2
MIN_TRAIN = 2
VALIDATION_SHARE = 0.125


@dataclass(frozen=True)
class Split:
    """Episodes by side. A neighbourhood is on one side only."""

    train: tuple[Episode, ...]
    validation: tuple[Episode, ...]
    """Decides when training stops, so that the hold-out has decided nothing before it judges. Unseen where
    the hold-out is: on answers that it knows by heart, the earlier prior looks better than any later one."""
    holdout: tuple[Episode, ...]
    holdout_groups: tuple[int, ...]
    """Neighbourhood of each hold-out episode: near-twins are one observation, not several."""
    twin_cosine: float
    """Cosine above which two prompts count as near-twins."""
    unseen: bool
    """Whether no hold-out or validation neighbourhood holds a prompt that the active prior learned from."""


def split(
    episodes: Iterable[Episode],
    *,
    holdout_share: float,
    seed: int,
    seen: AbstractSet[str] = frozenset(),
) -> Split:
    """De-duplicate episodes and deal whole neighbourhoods to the three sides.

    Args:
        episodes: of one space, in any order.
        holdout_share: share of the episodes that judges, in (0, 1).
        seed: of the dealing; the same episodes and seed give the same split.
        seen: prompt digests that the active prior was trained on.

    Raises:
        TooFewEpisodesError: too few neighbourhoods for the three sides.
    """
    kept = deduplicated(episodes)
    needed = MIN_HOLDOUT + MIN_VALIDATION + MIN_TRAIN
    if len(kept) < needed:
        raise TooFewEpisodesError(f"{len(kept)} different prompts, {needed} are the fewest to learn from")
    keys = stack_keys(kept)
    known = [prompt_digest(episode) in seen for episode in kept]
    for threshold in TWIN_COSINES:
        clusters = neighbourhoods(keys, threshold)
        fresh = [cluster for cluster in clusters if not any(known[index] for index in cluster)]
        # When almost everything was seen, seen prompts judge too and the caller starts from nothing.
        for eligible, unseen in ((fresh, True), (clusters, False)):
            sides = _deal(clusters, eligible, len(kept), holdout_share, seed)
            if sides is not None:
                train, validation, holdout = sides
                return Split(
                    train=_pick(kept, train),
                    validation=_pick(kept, validation),
                    holdout=_pick(kept, holdout),
                    holdout_groups=tuple(group for group, cluster in enumerate(holdout) for _ in cluster),
                    twin_cosine=threshold,
                    unseen=unseen,
                )
        logger.info("near-twins of cosine %s leave %d neighbourhoods, too few", threshold, len(clusters))
    raise TooFewEpisodesError(f"the {len(kept)} prompts are too similar to judge on others than trained on")


Clusters = list[list[int]]


def _deal(
    clusters: Clusters, eligible: Clusters, total: int, holdout_share: float, seed: int
) -> tuple[Clusters, Clusters, Clusters] | None:
    """Return (train, validation, holdout), the last two of eligible clusters; None when one is too small."""
    rng = np.random.default_rng(seed)
    holdout = _fill(eligible, rng, math.ceil(holdout_share * total), MIN_HOLDOUT)
    if holdout is None:
        return None
    rest = _without(eligible, holdout)
    left = sum(len(cluster) for cluster in rest)
    validation = _fill(rest, rng, math.ceil(VALIDATION_SHARE * left), MIN_VALIDATION)
    if validation is None:
        return None
    train = _without(clusters, holdout + validation)
    return (train, validation, holdout) if len(train) >= MIN_TRAIN else None


def _fill(
    clusters: Clusters, rng: np.random.Generator, episodes: int, least_clusters: int
) -> Clusters | None:
    """Return clusters in random order up to about `episodes` in all, leaving the large ones out."""
    chosen: Clusters = []
    size = 0
    largest = max(1, episodes // least_clusters)
    for index in rng.permutation(len(clusters)):
        if size >= episodes and len(chosen) >= least_clusters:
            break
        if len(clusters[index]) <= largest:
            chosen.append(clusters[index])
            size += len(clusters[index])
    return chosen if len(chosen) >= least_clusters else None


def _without(clusters: Clusters, taken: Clusters) -> Clusters:
    firsts = {cluster[0] for cluster in taken}
    return [cluster for cluster in clusters if cluster[0] not in firsts]


def _pick(episodes: Sequence[Episode], clusters: Clusters) -> tuple[Episode, ...]:
    return tuple(episodes[index] for cluster in clusters for index in cluster)
