"""What tests of training measure."""

from collections.abc import Sequence

import torch
from torch import nn

from memory.episode import Episode
from model.engine import Engine
from worker.neighbourhood import stack_keys
from worker.replay import likelihoods


async def mean_likelihood(
    engine: Engine, network: nn.Module, episodes: Sequence[Episode], keys: torch.Tensor | None = None
) -> float:
    """Return the mean likelihood of remembered answers under `network`, asked with `keys` or their own."""
    keys = torch.from_numpy(stack_keys(episodes)) if keys is None else keys
    with torch.no_grad():
        latents = network(keys)
    return float((await likelihoods(engine, episodes, list(latents))).mean())
