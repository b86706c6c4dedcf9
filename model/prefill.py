"""The forward pass over mixed prompts.

Owns batching, padding and the reuse of what prompts have in common: the tokens before a latent do not
depend on it, so each distinct prefix runs once, without gradient, and its KV cache is handed to every
row that starts with it. What outlives a call is `model/prefixes.py`'s. Knows nothing of decoding or of
likelihoods.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from model.prefixes import Prefixes


@dataclass(frozen=True, eq=False)
class Row:
    """One mixed prompt: `prefix` tokens, then embeddings."""

    prefix: tuple[int, ...]
    rest: torch.Tensor
    """(R, d), R ≥ 1; may require gradient."""


@dataclass(eq=False)
class Prefilled:
    """What a forward pass leaves: P columns of padded prefixes, then R of padded rests."""

    logits: torch.Tensor
    """(B, len(keep), V) of the columns that were asked for, in that order."""
    cache: Any
    """KV cache of transformers, B rows."""
    mask: torch.Tensor
    """(B, P + R), 1 for real columns."""

    def keep_rows(self, indices: Sequence[int]) -> None:
        """Drop all rows but these."""
        chosen = torch.tensor(indices, device=self.mask.device)
        self.cache.batch_select_indices(chosen)
        self.mask = self.mask[chosen]


def prefill(
    network: Any, rows: Sequence[Row], keep: Sequence[int] = (0,), kept: Prefixes | None = None
) -> Prefilled:
    """Run rows as one batch and return logits of the columns in `keep` with the KV cache.

    Rows are padded on the left, so that all of them end in the last column.

    Args:
        network: A causal language model of transformers.
        rows: The batch.
        keep: Columns whose logits are returned, counted from the last one, which is 0.
        kept: Of earlier calls: prefixes are looked up there.
    """
    device, dtype = network.device, network.dtype
    prefixes = list(dict.fromkeys(row.prefix for row in rows))
    mask = torch.zeros(len(rows), 0, dtype=torch.long, device=device)
    cache = None
    if any(prefixes):
        cache, prefix_mask = _prefix_cache(network, prefixes, kept)
        chosen = torch.tensor([prefixes.index(row.prefix) for row in rows], device=device)
        if not torch.equal(chosen, torch.arange(len(prefixes), device=device)):
            cache.batch_select_indices(chosen)
        mask = prefix_mask[chosen]
    width = max(len(row.rest) for row in rows)
    embeddings = torch.stack(
        [
            torch.nn.functional.pad(row.rest.to(device, dtype), (0, 0, width - len(row.rest), 0))
            for row in rows
        ]
    )  # (B, R, d)
    mask = torch.cat([mask, _left_mask([len(row.rest) for row in rows], width, device)], dim=1)
    output = network(
        inputs_embeds=embeddings,
        attention_mask=mask,
        position_ids=positions(mask)[:, -width:],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=torch.tensor([width - 1 - offset for offset in keep], device=device),
    )
    return Prefilled(output.logits, output.past_key_values, mask)


def last_states(network: Any, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the final hidden states, after the last norm, at the prompts' last tokens: (B, d) float32."""
    tokens, mask = _left_padded(prompts, network.device)
    with torch.no_grad():
        output = network.base_model(
            input_ids=tokens, attention_mask=mask, position_ids=positions(mask), use_cache=False
        )
    states: torch.Tensor = output.last_hidden_state[:, -1].float().cpu()
    return states


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Return position ids, (B, T), that count real columns only."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def batches(sizes: Sequence[int], budget: int, order: Callable[[int], Any]) -> Iterator[list[int]]:
    """Yield indices in groups whose padded size, longest times count, stays within `budget`.

    Groups follow `order`, which should put rows side by side that share a prefix or a length. A row
    beyond the budget makes a group of its own.
    """
    group: list[int] = []
    longest = 0
    for index in sorted(range(len(sizes)), key=order):
        grown = max(longest, sizes[index])
        if group and grown * (len(group) + 1) > budget:
            yield group
            group, grown = [], sizes[index]
        group.append(index)
        longest = grown
    if group:
        yield group


def _prefix_cache(
    network: Any, prefixes: Sequence[tuple[int, ...]], kept: Prefixes | None
) -> tuple[Any, torch.Tensor]:
    """Return the KV cache of prefixes, one row each, and its mask."""

    def compute(missing: Sequence[tuple[int, ...]]) -> Any:
        tokens, mask = _left_padded(missing, network.device)
        with torch.no_grad():
            output = network.base_model(
                input_ids=tokens, attention_mask=mask, position_ids=positions(mask), use_cache=True
            )
        return output.past_key_values

    lengths = [len(prefix) for prefix in prefixes]
    mask = _left_mask(lengths, max(lengths), network.device)
    # Nothing can be run for an empty prefix alone.
    return (compute(prefixes) if kept is None or not all(lengths) else kept.cache(prefixes, compute)), mask


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(prompt) for prompt in prompts)
    tokens = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    return tokens, _left_mask([len(prompt) for prompt in prompts], width, device)


def _left_mask(lengths: Sequence[int], width: int, device: torch.device) -> torch.Tensor:
    columns = torch.arange(width, device=device)
    return (columns[None] >= width - torch.tensor(lengths, device=device)[:, None]).long()
