"""KV caches of prompts' beginnings, kept between calls.

Owns which are kept, and how those of several prompts become one batch. Every step of a refinement asks for
the same prompt with other latents, and every epoch of a night for the same episodes: the tokens before a
latent are computed once. Knows nothing of what follows a prefix.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch

LIMIT_BYTES = 128 * 2**20
"""About 2,900 tokens of the default model: the prompts of several refinements at once."""

Prefix = tuple[int, ...]


class Prefixes:
    """The caches used last, one row each. For one thread at a time.

    Args:
        limit_bytes: Most memory of all that are kept; a longer prefix is computed each time.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit = limit_bytes
        self._kept: OrderedDict[Prefix, tuple[Any, int]] = OrderedDict()
        self._bytes = 0

    def cache(self, prefixes: Sequence[Prefix], compute: Callable[[Sequence[Prefix]], Any]) -> Any:
        """Return the KV cache of different prefixes, which the caller may change.

        Row by row, padded on the left to the longest of them. `compute` makes such a cache; it is asked for
        those that are not kept.
        """
        rows = {prefix: self._kept[prefix][0] for prefix in prefixes if prefix in self._kept}
        for prefix in rows:
            self._kept.move_to_end(prefix)
        if not rows:
            computed = compute(prefixes)
            self._keep_rows(computed, prefixes)
            return computed
        if len(prefixes) == 1:
            return copy.deepcopy(rows[prefixes[0]])
        if not all(map(_is_plain, rows.values())):
            return compute(prefixes)
        missing = [prefix for prefix in prefixes if prefix not in rows]
        if missing:
            computed = compute(missing)
            self._keep_rows(computed, missing)
            for at, prefix in enumerate(missing):
                kept = self._kept.get(prefix)
                rows[prefix] = kept[0] if kept else _row(computed, at, len(prefix))
        return _joined([rows[prefix] for prefix in prefixes])

    def _keep_rows(self, cache: Any, prefixes: Sequence[Prefix]) -> None:
        """Keep copies of as many rows as there is room for, their padding left out."""
        total = _size(cache)
        if len(prefixes) == 1:
            if total <= self._limit:
                self._keep(prefixes[0], copy.deepcopy(cache), total)
            return
        if not _is_plain(cache):
            return
        column = total // (len(prefixes) * cache.get_seq_length())
        left = self._limit
        for at, prefix in enumerate(prefixes):
            size = column * len(prefix)
            if size <= left:
                left -= size
                self._keep(prefix, _row(cache, at, len(prefix)), size)

    def _keep(self, prefix: Prefix, row: Any, size: int) -> None:
        self._kept[prefix] = row, size
        self._bytes += size
        while self._bytes > self._limit:
            _, (_, freed) = self._kept.popitem(last=False)
            self._bytes -= freed


def _row(cache: Any, at: int, length: int) -> Any:
    """Return a copy of the last `length` columns of one row."""
    return _cache_of(
        [
            tuple(part[at : at + 1, :, part.shape[2] - length :] for part in _parts(layer))
            for layer in cache.layers
        ]
    )


def _joined(rows: Sequence[Any]) -> Any:
    """Return one cache of several, each of one row, padded on the left."""
    width = max(row.get_seq_length() for row in rows)
    layers = []
    for same in zip(*(row.layers for row in rows), strict=True):
        padded = [
            [torch.nn.functional.pad(part, (0, 0, width - part.shape[2], 0)) for part in _parts(layer)]
            for layer in same
        ]  # (1, H, width, w) each
        layers.append(tuple(torch.cat(parts) for parts in zip(*padded, strict=True)))
    return _cache_of(layers)


def _cache_of(layers: Sequence[tuple[torch.Tensor, ...]]) -> Any:
    """Return a cache of transformers with copies of these keys and values, (B, H, T, w), layer by layer."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for index, (keys, values) in enumerate(layers):
        cache.update(keys, values, index)
    return cache


def _is_plain(cache: Any) -> bool:
    """Whether the cache holds a column per token and nothing else, in all layers: no windows, no states."""
    from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer for layer in cache.layers)


def _parts(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return layer.keys, layer.values


def _size(cache: Any) -> int:
    """Return the bytes of all tensors that a cache's layers hold."""
    return sum(
        value.numel() * value.element_size()
        for layer in cache.layers
        for value in vars(layer).values()
        if isinstance(value, torch.Tensor)
    )


def kv_values(config: Any) -> int:
    """Return how many numbers a KV cache holds of one token, by a model's text config; 0: it does not say."""
    try:
        heads = int(config.num_attention_heads)
        kept = int(getattr(config, "num_key_value_heads", None) or heads)
        width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        return 2 * int(config.num_hidden_layers) * kept * width
    except (AttributeError, RuntimeError, TypeError):  # none has these fields; or each layer has its own
        return 0
