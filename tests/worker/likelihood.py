"""What tests of training measure."""

from collections.abc import Sequence

import torch
from torch import nn

from memory.episode import Episode
from model.engine import Engine
from worker.neighbourhood import stack_keys
from worker.training import _likelihoods


async def mean_likelihood(
    engine: Engine, network: nn.Module, episodes: Sequence[Episode], keys: torch.Tensor | None = None
) -> float:
    """Return the mean likelihood of remembered answers under `network`, asked with `keys` or their own."""
    keys = torch.from_numpy(stack_keys(episodes)) if keys is None else keys
    return float((await _likelihoods(engine, network, episodes, keys)).mean())
