"""Kinds of task among the episodes of a night.

Owns which episodes are of one kind, and which kinds can be judged. One server may answer word problems and
sort headlines: what a prior is worth there, and how far it may speak, are two questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from memory.chains import chains
from memory.episode import Episode
from memory.prior import KIND_COSINE
from worker.neighbourhood import stack_keys
from worker.split import FEWEST, MIN_HOLDOUT, Split


@dataclass(frozen=True)
class Kind:
    """One kind of task, on the sides that matter to its region and its judgement."""

    train: tuple[Episode, ...]
    holdout: tuple[Episode, ...]
    holdout_groups: tuple[int, ...]
    """As in `Split`."""

    def sides(self, whole: Split) -> Split:
        """Return what the split `whole` is of this kind alone; its validation stays."""
        return replace(whole, train=self.train, holdout=self.holdout, holdout_groups=self.holdout_groups)


def kinds(sides: Split) -> tuple[Kind, ...]:
    """Return the kinds of task that can be judged, those of more training episodes first; at least one.

    A kind with fewer than `MIN_HOLDOUT` neighbourhoods held out cannot be judged by itself. When it is large
    it is left out, for nobody has seen what the prior does there; small ones make one kind together. Where
    no kind can be judged by itself all are one.
    """
    everything = [*sides.train, *sides.holdout, *sides.validation]  # these, too, hold a kind together
    whole = Kind(sides.train, sides.holdout, sides.holdout_groups)
    alone: list[Kind] = []
    few: list[Kind] = []
    for component in chains(stack_keys(everything), KIND_COSINE):
        part = _part(sides, component)
        if part.train and _judgements(part) >= MIN_HOLDOUT:
            alone.append(part)
        elif len(part.train) < FEWEST:
            few.append(part)
    strays = _joined(few)
    if strays.train and _judgements(strays) >= MIN_HOLDOUT:
        alone.append(strays)
    if not alone:
        return (whole,)
    return tuple(sorted(alone, key=lambda part: -len(part.train)))


def _judgements(kind: Kind) -> int:
    return len(set(kind.holdout_groups))


def _part(sides: Split, component: Sequence[int]) -> Kind:
    first, end = len(sides.train), len(sides.train) + len(sides.holdout)
    held = [index - first for index in component if first <= index < end]
    return Kind(
        tuple(sides.train[index] for index in component if index < first),
        tuple(sides.holdout[index] for index in held),
        tuple(sides.holdout_groups[index] for index in held),
    )


def _joined(parts: Sequence[Kind]) -> Kind:
    return Kind(
        tuple(episode for part in parts for episode in part.train),
        tuple(episode for part in parts for episode in part.holdout),
        tuple(group for part in parts for group in part.holdout_groups),
    )
