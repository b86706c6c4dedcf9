"""A model whose answers never end by themselves.

Owns the hook that forbids the end-of-sequence tokens, so that answers of different methods are equally
long. Knows nothing of the methods.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def endless(network: Any, ends: Sequence[int]) -> Iterator[None]:
    """Give the tokens `ends` the lowest logit that `network` can express, for whoever uses its head."""
    tokens = torch.tensor(list(ends), device=network.device)

    def forbid(_module: Any, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, tokens, torch.finfo(logits.dtype).min)

    hook = network.get_output_embeddings().register_forward_hook(forbid)
    try:
        yield
    finally:
        hook.remove()
