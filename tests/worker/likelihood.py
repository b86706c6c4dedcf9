"""What tests of training measure."""

from collections.abc import Sequence

from torch import nn

from memory.episode import Episode
from model.engine import Engine
from worker.training import _likelihoods


async def mean_likelihood(engine: Engine, network: nn.Module, episodes: Sequence[Episode]) -> float:
    """Return the mean over episodes of the remembered answer's likelihood under `network`."""
    return float((await _likelihoods(engine, network, episodes)).mean())
