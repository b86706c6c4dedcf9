"""What tests of training measure."""

from collections.abc import Sequence

import torch
from torch import nn

from memory.episode import Episode
from model.engine import Engine
from worker.neighbourhood import stack_keys
from worker.replay import likelihoods


async def mean_likelihood(engine: Engine, network: nn.Module, episodes: Sequence[Episode]) -> float:
    """Return the mean over episodes of the remembered answer's likelihood under `network`."""
    with torch.no_grad():
        latents = network(torch.from_numpy(stack_keys(episodes)))  # (N, L, d)
    return float((await likelihoods(engine, episodes, list(latents))).mean())
