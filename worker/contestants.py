"""The latents that the gate compares: the candidate's and those of its controls.

Owns how each control is made. Knows nothing of scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from memory.episode import Array, Episode
from memory.prior import DEFAULT_RECALL_FLOOR, Competence, Prior, PriorNetwork
from memory.store import REACH
from memory.transfer import momentum_transfer
from worker.neighbourhood import stack_keys

if TYPE_CHECKING:  # so that a trained prior can be looked at where there is torch, and little else
    from config.settings import Settings

Latents = list[torch.Tensor | None]
"""One latent (L, d) per hold-out episode; None: the plain prompt."""


@dataclass(frozen=True)
class Recall:
    """How the server recalls."""

    k: int = 4
    floor: float = DEFAULT_RECALL_FLOOR
    temperature: float = 0.1
    clamp: float = 1.0

    @classmethod
    def of(cls, settings: "Settings", learned_floor: float) -> "Recall":
        """Return what the settings name, and the floor that would be served where they name none."""
        return cls(
            settings.recall_k,
            learned_floor if settings.recall_floor is None else settings.recall_floor,
            settings.recall_temperature,
            settings.delta_norm_clamp,
        )


@dataclass(frozen=True, eq=False)
class Candidate:
    """A trained prior that no version has been given yet."""

    network: PriorNetwork
    competence: Competence

    def predict(self, episodes: Sequence[Episode]) -> torch.Tensor:
        """Return its latents for the episodes' keys, (N, L, d), wherever they lie, as priors serve them."""
        means = [torch.from_numpy(self.competence.mean(key)) for key in stack_keys(episodes)]
        with torch.no_grad():
            # One by one: in one batch the same weights round to other latents.
            return torch.cat([self.network(mean[None]) for mean in means])

    def same_weights(self, prior: Prior) -> bool:
        """Return whether this is `prior` over again, though its region may have moved."""
        ours, theirs = self.network.state_dict(), prior.network.state_dict()
        return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def contestants(
    candidate: Candidate,
    active: Prior | None,
    train: Sequence[Episode],
    holdout: Sequence[Episode],
    *,
    neutral: torch.Tensor,
    recall: Recall,
    seed: int,
) -> Mapping[str, Latents]:
    """Return the latents of `candidate` and of its controls by name, each as long as `holdout`.

    Args:
        candidate: who wants to be promoted.
        active: the prior that serves now, silent outside its region; None leaves `active` out.
        train: episodes the candidate learned from; the mean and the neighbours come from those whose latent
            earned its place, and `mean` is left out when there are none.
        holdout: episodes to compare on.
        neutral: (L, d) base of the neighbours when there is no prior.
        recall: k, floor and temperature of serving.
        seed: of the random latents.
    """
    proposed = candidate.predict(holdout)  # (N, L, d)
    earned = [episode for episode in train if episode.latent_earned]
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Latents] = {
        "candidate": list(proposed),
        "none": [None] * len(holdout),
        "knn": _neighbours(train, holdout, neutral, recall),
        "random": [_same_norms(latent, generator) for latent in proposed],
    }
    if earned:
        mean = torch.from_numpy(np.mean([e.latent.astype(np.float32) for e in earned], axis=0))  # (L, d)
        found["mean"] = [mean] * len(holdout)
    if active is not None:
        found["active"] = _as_served(active, holdout)
    return found


def _as_served(prior: Prior, episodes: Sequence[Episode]) -> Latents:
    keys = stack_keys(episodes)
    return [torch.from_numpy(prior.predict(key)) if prior.covers(key) else None for key in keys]


def _neighbours(
    train: Sequence[Episode], holdout: Sequence[Episode], neutral: torch.Tensor, recall: Recall
) -> Latents:
    similarities = stack_keys(holdout) @ stack_keys(train).T  # (M, N)
    base: Array = neutral.numpy()
    found: Latents = []
    for row in similarities:
        near = np.argsort(-row, kind="stable")[: REACH * recall.k]  # as far as the server looks
        earned = [index for index in near if row[index] >= recall.floor and train[index].latent_earned]
        nearest = np.array(earned[: recall.k], dtype=int)
        if not len(nearest):
            found.append(None)
            continue
        moved = momentum_transfer(
            base,
            np.stack([train[index].latent for index in nearest]),
            base,
            row[nearest],
            temperature=recall.temperature,
            clamp=recall.clamp,
        )
        found.append(torch.from_numpy(moved))
    return found


def _same_norms(latent: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return random directions with the norms of `latent`'s rows, (L, d)."""
    drawn = torch.randn(latent.shape, generator=generator)
    scaled: torch.Tensor = drawn / drawn.norm(dim=1, keepdim=True) * latent.norm(dim=1, keepdim=True)
    return scaled
