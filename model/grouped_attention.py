"""Attention whose query heads share keys and values, without copies of these, on CPUs.

Owns one attention function of transformers. Where there is a mask, transformers' own repeats keys and
values for each query head first, so that every decoded token copies the whole KV cache several times over
(decisions/engine.md has the measurements). Knows nothing of models.
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

_NAME = "sdpa_grouped"


def share_heads(network: Any) -> None:
    """Let `network`, on the CPU with transformers' default attention, attend without repeating heads.

    Leaves one alone that attends in any other way, or that has as many key heads as query heads.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    config = network.config.get_text_config()
    heads = int(config.num_attention_heads)
    shared = int(getattr(config, "num_key_value_heads", None) or heads) < heads
    if not shared or network.device.type != "cpu" or config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    network.set_attn_implementation(_NAME)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers does: query (B, H, T, w), key and value (B, K, S, w) → (B, T, H, w)."""
    if attention_mask is None or others.get("position_bias") is not None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **others
        )
        return result
    attended = scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling, enable_gqa=True
    )
    return attended.transpose(1, 2).contiguous(), None
