"""The tokens before a latent are computed once, however often the latent changes."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from model.engine import Decoding, SteeredPrompt
from model.frozen_model import FrozenModel
from model.prefixes import Prefixes
from model.transformers_engine import TransformersEngine

ANSWERS = [(510, 3575, 282, 4649), (33,), (504, 6541, 2)]
FEW_COLUMNS = 24
"""So few that each answer of a step is a batch of its own."""


@pytest.fixture
def prefix_passes(model: FrozenModel) -> Iterator[list[int]]:
    """Sizes of the prefixes that were run, in tokens; nothing is remembered from other tests."""
    sizes: list[int] = []

    def watch(module: Any, args: Any, kwargs: Any) -> None:
        if kwargs.get("input_ids") is not None and kwargs["input_ids"].shape[1] > 1:
            sizes.append(kwargs["input_ids"].numel())

    remembered, model._prefixes = model._prefixes, Prefixes()
    handle = model.network.base_model.register_forward_pre_hook(watch, with_kwargs=True)
    yield sizes
    handle.remove()
    model._prefixes = remembered


def steered(engine: TransformersEngine, text: str, seed: int) -> SteeredPrompt:
    noise = torch.randn(engine.space.shape, generator=torch.Generator().manual_seed(seed))
    tokens = engine.render([{"role": "user", "content": text}])
    return SteeredPrompt(tokens, engine.neutral_latent() + 0.05 * noise)


async def test_steps_of_one_refinement_run_the_prompt_once(
    engine: TransformersEngine, prefix_passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.frozen_model._GRADIENT_COLUMNS", FEW_COLUMNS)
    for seed in range(3):
        prompt = steered(engine, "What is the capital of France?", seed)
        await engine.latent_gradient([prompt] * 3, ANSWERS, [1.0, -0.5, 2.0])
        await engine.generate([prompt], Decoding(max_tokens=2))
    assert prefix_passes == [engine.position(prompt.token_ids)]


async def test_gradients_with_and_without_remembered_prefixes_are_equal(
    engine: TransformersEngine, model: FrozenModel, prefix_passes: list[int]
) -> None:
    prompts = [steered(engine, "Name three fruits.", seed) for seed in range(3)]
    await engine.generate(prompts, [Decoding(max_tokens=4)] * 3)
    again = await engine.latent_gradient(prompts, ANSWERS, [1.0, -0.5, 2.0])
    assert len(prefix_passes) == 1
    model._prefixes = Prefixes(limit_bytes=0)
    fresh = await engine.latent_gradient(prompts, ANSWERS, [1.0, -0.5, 2.0])
    assert len(prefix_passes) == 2
    assert torch.allclose(again.log_likelihood, fresh.log_likelihood, atol=1e-5)
    assert torch.allclose(again.gradient, fresh.gradient, atol=1e-5 * float(fresh.gradient.abs().max()))


class Layer:
    """Stands for a layer of a KV cache; 4 bytes per token."""

    def __init__(self, tokens: int) -> None:
        self.keys = torch.zeros(1, 1, tokens, 1)


class Cache:
    def __init__(self, tokens: int) -> None:
        self.layers = [Layer(tokens)]


def looked_up(prefixes: Prefixes, *prefix: int) -> bool:
    """Return whether a prefix was there already."""
    computed = []

    def compute() -> Cache:
        computed.append(prefix)
        return Cache(len(prefix))

    prefixes.cache(prefix, compute)
    return not computed


def test_those_used_longest_ago_make_room() -> None:
    prefixes = Prefixes(limit_bytes=4 * 4)
    assert not looked_up(prefixes, 1, 1)
    assert not looked_up(prefixes, 2, 2)
    assert looked_up(prefixes, 1, 1)
    assert not looked_up(prefixes, 3, 3)
    assert looked_up(prefixes, 1, 1)
    assert not looked_up(prefixes, 2, 2)


def test_prefix_beyond_the_limit_is_not_kept_and_drives_nothing_out() -> None:
    prefixes = Prefixes(limit_bytes=4 * 4)
    assert not looked_up(prefixes, 1, 1)
    assert not looked_up(prefixes, *[5] * 5)
    assert not looked_up(prefixes, *[5] * 5)
    assert looked_up(prefixes, 1, 1)


def test_callers_may_change_what_they_get() -> None:
    prefixes = Prefixes()
    for _ in range(3):
        cache = prefixes.cache((1, 2), lambda: Cache(2))
        assert cache.layers[0].keys.shape[2] == 2
        cache.layers[0].keys += 1
        assert float(cache.layers[0].keys.sum()) == 2
        cache.layers[0].keys = torch.zeros(1, 1, 9, 1)
