"""The tokens before a latent are computed once, however often the latent changes."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from model.engine import Decoding, Label, SteeredPrompt
from model.frozen_model import FrozenModel
from model.prefixes import Prefix, Prefixes
from model.transformers_engine import TransformersEngine

LABELS = [Label.of(answer) for answer in ((510, 3575, 282, 4649), (33,), (504, 6541, 2))]
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
        await engine.latent_gradient([prompt] * 3, LABELS, [1.0, -0.5, 2.0])
        await engine.generate([prompt], Decoding(max_tokens=2))
    assert prefix_passes == [engine.position(prompt.token_ids)]


async def test_gradients_with_and_without_remembered_prefixes_are_equal(
    engine: TransformersEngine, model: FrozenModel, prefix_passes: list[int]
) -> None:
    prompts = [steered(engine, "Name three fruits.", seed) for seed in range(3)]
    await engine.generate(prompts, [Decoding(max_tokens=4)] * 3)
    again = await engine.latent_gradient(prompts, LABELS, [1.0, -0.5, 2.0])
    assert len(prefix_passes) == 1
    model._prefixes = Prefixes(limit_bytes=0)
    fresh = await engine.latent_gradient(prompts, LABELS, [1.0, -0.5, 2.0])
    assert len(prefix_passes) == 2
    assert torch.allclose(again.log_likelihood, fresh.log_likelihood, atol=1e-5)
    assert torch.allclose(again.gradient, fresh.gradient, atol=1e-5 * float(fresh.gradient.abs().max()))


def cache_of(*prefixes: Prefix) -> DynamicCache:
    """Return a cache whose keys are the tokens and whose values their double, padded with -1 on the left."""
    width = max(map(len, prefixes))
    rows = [[-1] * (width - len(prefix)) + list(prefix) for prefix in prefixes]
    columns = torch.tensor(rows, dtype=torch.float32)[:, None, :, None]
    cache = DynamicCache()
    cache.update(columns, columns * 2, 0)
    return cache


async def test_epochs_over_several_prompts_run_each_prompt_once(
    engine: TransformersEngine, model: FrozenModel, prefix_passes: list[int]
) -> None:
    texts = ("Name three fruits.", "What is the capital of France, and since when?", "Why?")
    prompts = [steered(engine, text, seed) for seed, text in enumerate(texts)]
    weights = [1.0, -0.5, 2.0]
    await engine.latent_gradient(prompts[:2], LABELS[:2], weights[:2])
    await engine.latent_gradient(prompts[1:], LABELS[1:], weights[1:])
    again = await engine.latent_gradient(prompts, LABELS, weights)
    assert len(prefix_passes) == 2
    assert prefix_passes[1] == engine.position(prompts[2].token_ids)
    model._prefixes = Prefixes(limit_bytes=0)
    fresh = await engine.latent_gradient(prompts, LABELS, weights)
    assert torch.allclose(again.log_likelihood, fresh.log_likelihood, atol=1e-5)
    assert torch.allclose(again.gradient, fresh.gradient, atol=1e-5 * float(fresh.gradient.abs().max()))


class Looking:
    """Looks prefixes up, and notes which had to be computed."""

    def __init__(self, limit_tokens: int = 99) -> None:
        self.prefixes = Prefixes(limit_bytes=limit_tokens * 8)
        self.computed: list[Prefix] = []

    def up(self, *prefixes: Prefix) -> DynamicCache:
        self.computed = []
        found = self.prefixes.cache(prefixes, self._compute)
        assert found.get_seq_length() == max(map(len, prefixes))
        for row, prefix in zip(found.layers[0].keys, prefixes, strict=True):
            assert row[0, found.get_seq_length() - len(prefix) :, 0].tolist() == list(prefix)
        real = found.layers[0].keys > 0
        assert torch.equal(found.layers[0].values[real], 2 * found.layers[0].keys[real])
        return found

    def _compute(self, missing: Sequence[Prefix]) -> DynamicCache:
        self.computed += missing
        return cache_of(*missing)


def test_those_used_longest_ago_make_room() -> None:
    looking = Looking(limit_tokens=4)
    looking.up((1, 1))
    looking.up((2, 2))
    looking.up((1, 1))
    assert not looking.computed
    looking.up((3, 3))
    looking.up((1, 1))
    assert not looking.computed
    looking.up((2, 2))
    assert looking.computed


def test_prefix_beyond_the_limit_is_not_kept_and_drives_nothing_out() -> None:
    looking = Looking(limit_tokens=4)
    looking.up((1, 1))
    for _ in range(2):
        looking.up((5,) * 5)
        assert looking.computed
    looking.up((1, 1))
    assert not looking.computed


def test_of_several_prefixes_only_those_that_are_not_kept_are_computed() -> None:
    looking = Looking()
    looking.up((1, 2, 3), (4,))
    assert looking.computed == [(1, 2, 3), (4,)]
    looking.up((4,), (5, 6), (1, 2, 3))
    assert looking.computed == [(5, 6)]
    looking.up((6,) * 9, (5, 6))
    assert looking.computed == [(6,) * 9]
    looking.up((5, 6), (4,))
    assert not looking.computed


def test_more_prefixes_than_are_kept_still_come_as_one_batch() -> None:
    looking = Looking(limit_tokens=3)
    for _ in range(2):
        looking.up((1, 2), (3, 4), (5, 6))
        assert looking.computed


def test_layers_that_hold_more_than_columns_are_computed_for_each_batch() -> None:
    class Window(DynamicLayer):
        pass

    computed: list[Prefix] = []

    def compute(missing: Sequence[Prefix]) -> DynamicCache:
        computed.extend(missing)
        cache = cache_of(*missing)
        cache.layers[0].__class__ = Window
        return cache

    prefixes = Prefixes()
    for _ in range(2):
        prefixes.cache([(1, 2)], compute)
    assert computed == [(1, 2)]
    assert isinstance(prefixes.cache([(1, 2), (3,)], compute).layers[0], Window)
    assert computed == [(1, 2), (1, 2), (3,)]


def test_callers_may_change_what_they_get() -> None:
    looking = Looking()
    for asked in ([(1, 2)], [(1, 2)], [(1, 2), (3,)], [(3,), (1, 2)]):
        cache = looking.up(*asked)
        cache.layers[0].keys += 1
        cache.layers[0].keys = torch.zeros(1, 1, 9, 1)
