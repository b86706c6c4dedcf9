"""Attention without copies computes what transformers' own computes."""

from typing import Any

import pytest
import torch

from model.grouped_attention import share_heads

MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])


def network(key_heads: int, attention: str = "sdpa") -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=key_heads,
    )
    config._attn_implementation = attention
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def run(model: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits of a padded batch, those of one more token from its cache, and a gradient."""
    tokens = torch.arange(12).reshape(2, 6)
    first = model(input_ids=tokens, attention_mask=MASK, use_cache=True)
    mask = torch.nn.functional.pad(MASK, (0, 1), value=1)
    more = model(input_ids=tokens[:, :1], attention_mask=mask, past_key_values=first.past_key_values)
    leaf = model.get_input_embeddings()(tokens).requires_grad_()
    logits = model(inputs_embeds=leaf, attention_mask=MASK).logits
    (gradient,) = torch.autograd.grad(logits[:, -1].square().sum(), leaf)
    return first.logits[MASK.bool()], more.logits, gradient


def test_grouped_attention_is_the_models_own() -> None:
    model = network(key_heads=2)
    expected = run(model)
    share_heads(model)
    assert model.config._attn_implementation == "sdpa_grouped"
    for ours, theirs in zip(run(model), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_no_mask_attends_as_before() -> None:
    model = network(key_heads=2)
    tokens = torch.arange(6).reshape(1, 6)
    expected = model(input_ids=tokens).logits
    share_heads(model)
    torch.testing.assert_close(model(input_ids=tokens).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("key_heads", "attention"), [(4, "sdpa"), (2, "eager")])
def test_what_shares_nothing_or_attends_otherwise_is_left_alone(key_heads: int, attention: str) -> None:
    model = network(key_heads, attention)
    share_heads(model)
    assert model.config._attn_implementation == attention


def test_the_default_model_attends_grouped(small_model: str) -> None:
    from model.frozen_model import FrozenModel

    model = FrozenModel(small_model, length=4, placement="user_turn_end")
    assert model.network.config._attn_implementation == "sdpa_grouped"
