"""From what was recalled to where this request's latent starts.

Owns which base each neighbour's delta is taken from, and which neighbours have none: a latent that was found
on top of an older prior, less what the prior of now gives, would undo what the night has learned since
(ADR 0010). The formula itself is `memory/transfer.py`.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from memory.episode import Array, Episode
from memory.prior import Prior
from memory.store import Recalled
from memory.transfer import momentum_transfer

BaseOf = Callable[[Array], torch.Tensor]
"""Base latent, (L, d), of a key, (d,)."""


def base_of(prior: Prior | None, neutral: torch.Tensor) -> BaseOf:
    """Return the function from a key to its base: the prior where a row of it covers that, neutral
    elsewhere."""

    def base(key: Array) -> torch.Tensor:
        row = prior.row(key) if prior is not None else None
        return neutral if row is None else torch.from_numpy(np.array(row.latent, dtype=np.float32))

    return base


def base_is_known(episode: Episode, prior: Prior | None) -> bool:
    """Return whether the prior of now gives the base that the episode's latent was found from.

    It does when it is the same version. Where it does not speak the base is neutral, and the latent counts
    whole, whatever it was found from.
    """
    return prior is None or episode.prior_version == prior.version or not prior.covers(episode.key)


def transfer(
    key: Array, recalled: Sequence[Recalled], bases: BaseOf, *, temperature: float, clamp: float
) -> torch.Tensor:
    """Return z_0, (L, d): the key's base, moved by what refining gained for its neighbours.

    Args:
        key: (d,) of the request.
        recalled: Its neighbours, in any order; none leaves the base as it is.
        bases: Base latent of a key under the prior that is active now.
        temperature: T of the softmax over similarities.
        clamp: Longest summed delta, relative to the norm of the base.
    """
    base = bases(key)
    if not recalled:
        return base.clone()
    moved = momentum_transfer(
        base.numpy(),
        np.stack([np.asarray(near.episode.latent, dtype=np.float32) for near in recalled]),  # (k, L, d)
        np.stack([bases(near.episode.key).numpy() for near in recalled]),  # (k, L, d)
        np.array([near.similarity for near in recalled]),
        temperature=temperature,
        clamp=clamp,
    )
    return torch.from_numpy(moved)
