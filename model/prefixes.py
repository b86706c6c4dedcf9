"""KV caches of prompts' beginnings, kept between calls.

Owns which are kept and how they are handed out. Every step of a refinement asks for the same prompt with
other latents: the tokens before the latent are computed in its first step only. Knows nothing of what
follows a prefix.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

LIMIT_BYTES = 128 * 2**20
"""About 2,900 tokens of the default model: the prompts of several refinements at once."""


class Prefixes:
    """The caches used last, one row each. For one thread at a time.

    Args:
        limit_bytes: Most memory of all that are kept; a longer prefix is computed each time.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit = limit_bytes
        self._kept: OrderedDict[tuple[int, ...], tuple[Any, int]] = OrderedDict()
        self._bytes = 0

    def cache(self, prefix: tuple[int, ...], compute: Callable[[], Any]) -> Any:
        """Return the KV cache of a prefix, which the caller may change; `compute` makes it, one row."""
        if prefix in self._kept:
            self._kept.move_to_end(prefix)
            return copy.deepcopy(self._kept[prefix][0])
        cache = compute()
        size = _size(cache)
        if size <= self._limit:
            self._kept[prefix] = copy.deepcopy(cache), size
            self._bytes += size
        while self._bytes > self._limit:
            _, (_, freed) = self._kept.popitem(last=False)
            self._bytes -= freed
        return cache


def _size(cache: Any) -> int:
    """Return the bytes of all tensors that a cache's layers hold."""
    return sum(
        value.numel() * value.element_size()
        for layer in cache.layers
        for value in vars(layer).values()
        if isinstance(value, torch.Tensor)
    )
