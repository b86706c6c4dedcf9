"""The sides of a night: episodes to train on, to stop by, and to judge by.

Owns the rule that near-twins stand on one side, that what the prior has learned from in earlier nights does
not judge it, and that each kind of task has its own judges. Knows nothing of models.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

from memory.chains import chains
from memory.episode import LEAST_GAIN, Array, Episode
from memory.prior import KIND_COSINE
from worker.errors import TooFewEpisodesError
from worker.neighbourhood import merged, stack_keys

logger = logging.getLogger(__name__)

TWIN_COSINES = (0.97, 0.98, 0.99, 0.995)
"""Tried in turn. Prompts that share a long instruction are similar however they differ, and with many
of them chains of near-twins swallow everything; then only closer ones count as twins."""

MIN_HOLDOUT = 5
"""Fewest neighbourhoods that can judge: with four, the 95 % interval held the truth in 85 % of trials,
with five in 92 %."""

MIN_VALIDATION = 2
MIN_TRAIN = 2
FEWEST = MIN_HOLDOUT + MIN_VALIDATION + MIN_TRAIN
"""Fewest different prompts of a kind of task that is dealt, and judged, by itself."""

VALIDATION_SHARE = 0.125

LEAST_GAINING = 0.05
"""Share of a kind's episodes that must have gained: where the unsteered answer is the best every time there
is nothing to learn, and learning it costs the other kinds (ADR 0019)."""


@dataclass(frozen=True)
class Split:
    """Episodes by side. A neighbourhood is on one side only."""

    train: tuple[Episode, ...]
    validation: tuple[Episode, ...]
    """Watches the training, with training episodes where these are few, so that the hold-out has decided
    nothing before it judges. Unseen where the hold-out is: on answers that it knows by heart, the earlier
    prior looks better than any later one."""
    holdout: tuple[Episode, ...]
    holdout_groups: tuple[int, ...]
    """Neighbourhood of each hold-out episode: near-twins are one observation, not several."""
    twin_cosine: float
    """Cosine above which two prompts count as near-twins."""
    unseen: bool
    """Whether no hold-out or validation neighbourhood holds a prompt that the active prior learned from."""
    left_out: tuple[Episode, ...] = ()
    """Of kinds of task with nothing to learn, on no side: the unsteered answer was the best."""


def split(
    episodes: Iterable[Episode],
    *,
    holdout_share: float,
    seed: int,
    seen: AbstractSet[str] = frozenset(),
) -> Split:
    """De-duplicate episodes and deal whole neighbourhoods to the three sides, each kind of task by itself.

    Args:
        episodes: of one space, in any order.
        holdout_share: share of the episodes that judges, in (0, 1).
        seed: of the dealing; the same episodes and seed give the same split.
        seen: prompt digests that the active prior was trained on.

    Raises:
        TooFewEpisodesError: too few neighbourhoods for the three sides.
    """
    remembered = merged(episodes)
    pairs = _worthwhile(remembered)
    kept = [episode for episode, _ in pairs]
    worth = {episode.id for episode in kept}
    left_out = tuple(episode for episode, _ in remembered if episode.id not in worth)
    if len(kept) < FEWEST:
        others = f"; to {len(left_out)} others unsteered answers were the best" if left_out else ""
        raise TooFewEpisodesError(
            f"{len(kept)} different prompts, {FEWEST} are the fewest to learn from{others}"
        )
    keys = stack_keys(kept)
    known = [not seen.isdisjoint(digests) for _, digests in pairs]

    def dealt_by(kinds: Clusters) -> list[_Dealt | None]:
        return [_deal_kind(keys, kind, known, holdout_share, seed) for kind in kinds]

    kinds = _kinds(keys)
    dealt = dealt_by(kinds)
    if not any(dealt) and len(kinds) > 1:
        kinds = [list(range(len(kept)))]
        dealt = dealt_by(kinds)
    if any(one and one.unseen for one in dealt):
        # A kind that nobody asks for any more has little unseen: all of it judges, others watch the training.
        # One with still less is not judged tonight; the others do not begin anew for it.
        for at, kind in enumerate(kinds):
            one = dealt[at]
            if one is not None and not one.unseen:
                dealt[at] = _deal_kind(keys, kind, known, holdout_share, seed, watched=False)
    found = [one for one in dealt if one is not None]
    if not found:
        raise TooFewEpisodesError(
            f"the {len(kept)} prompts are too similar to judge on others than trained on"
        )
    # What cannot be judged by itself is trained on; the prior does not speak there (`worker/kinds.py`).
    train = [one.train if one else [kind] for one, kind in zip(dealt, kinds, strict=True)]
    holdout = [cluster for one in found for cluster in one.holdout]
    return Split(
        train=_pick(kept, [cluster for clusters in train for cluster in clusters]),
        validation=_pick(kept, [cluster for one in found for cluster in one.validation]),
        holdout=_pick(kept, holdout),
        holdout_groups=tuple(group for group, cluster in enumerate(holdout) for _ in cluster),
        twin_cosine=max(one.twin_cosine for one in found),
        unseen=all(one.unseen for one in found),
        left_out=left_out,
    )


Clusters = list[list[int]]


@dataclass(frozen=True)
class _Dealt:
    """One kind's neighbourhoods by side; the last two as in `Split`."""

    train: Clusters
    validation: Clusters
    holdout: Clusters
    twin_cosine: float
    unseen: bool


def _worthwhile(pairs: list[tuple[Episode, frozenset[str]]]) -> list[tuple[Episode, frozenset[str]]]:
    """Leave out the kinds of task in which the unsteered answer was the best one nearly every time.

    Raises:
        TooFewEpisodesError: there are no others.
    """
    if len(pairs) < FEWEST:
        return pairs
    gained = np.array([_gained(episode) for episode, _ in pairs])
    kinds = _kinds(stack_keys([episode for episode, _ in pairs]))
    worth = sorted(index for kind in kinds if gained[kind].mean() >= LEAST_GAINING for index in kind)
    if not worth:
        raise TooFewEpisodesError(
            f"to {int((~gained).sum())} of {len(pairs)} remembered prompts the unsteered answer was the best:"
            " there is nothing to learn"
        )
    if len(worth) < len(pairs):
        logger.info("%d prompts are left out: unsteered answers were the best", len(pairs) - len(worth))
    return [pairs[index] for index in worth]


def _gained(episode: Episode) -> bool:
    # A remembered answer may be a little worse than the one that a latent earned its place with (ADR 0016).
    return episode.latent_earned or episode.reward - episode.plain_reward >= LEAST_GAIN


def _kinds(keys: Array) -> Clusters:
    """Return the kinds of task that are large enough to be dealt by themselves, and all others as one."""
    components = chains(keys, KIND_COSINE)
    large = [component for component in components if len(component) >= FEWEST]
    small = sorted(index for component in components if len(component) < FEWEST for index in component)
    return [*large, small] if small else large


def _deal_kind(
    keys: Array,
    kind: list[int],
    known: Sequence[bool],
    holdout_share: float,
    seed: int,
    *,
    watched: bool = True,
) -> _Dealt | None:
    """Deal the prompts of one kind; None when there are too few neighbourhoods.

    `watched`: whether some of them watch the training; otherwise only unseen ones are dealt, and none.
    """
    for threshold in TWIN_COSINES:
        clusters = [[kind[at] for at in cluster] for cluster in chains(keys[kind], threshold)]
        fresh = [cluster for cluster in clusters if not any(known[index] for index in cluster)]
        # When almost everything was seen, seen prompts judge too and the caller starts from nothing.
        ways = [(fresh, True, MIN_VALIDATION), (clusters, False, MIN_VALIDATION)]
        for eligible, unseen, watching in ways if watched else [(fresh, True, 0)]:
            sides = _deal(clusters, eligible, len(kind), holdout_share, seed, watching)
            if sides is not None:
                return _Dealt(*sides, threshold, unseen)
        logger.info("near-twins of cosine %s leave %d neighbourhoods, too few", threshold, len(clusters))
    return None


def _deal(
    clusters: Clusters, eligible: Clusters, total: int, holdout_share: float, seed: int, watching: int
) -> tuple[Clusters, Clusters, Clusters] | None:
    """Return (train, validation, holdout), the last two of eligible clusters; None when one is too small.

    `watching`: fewest neighbourhoods for validation; 0: none is needed.
    """
    rng = np.random.default_rng(seed)
    holdout = _fill(eligible, rng, math.ceil(holdout_share * total), MIN_HOLDOUT)
    if holdout is None:
        return None
    rest = _without(eligible, holdout)
    left = sum(len(cluster) for cluster in rest)
    validation = _fill(rest, rng, math.ceil(VALIDATION_SHARE * left), watching) if watching else []
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
