"""What is trained in place of a latent, on random weights."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from bench.bounds.adapters import Adapter, KvPrefix, Lora
from bench.bounds.fit import answer, fit
from model.engine import Decoding, Label, SteeredPrompt
from model.frozen_model import FrozenModel
from model.transformers_engine import TransformersEngine
from tests.worker.conftest import one_thread
from worker.dataset import Example

__all__ = ["one_thread"]  # autouse, here as there

CHOICES = ("red", "green", "blue")
Makes = Callable[[FrozenModel], Adapter]


def lora(model: FrozenModel) -> Adapter:
    return Lora(model.network, 4, 0)


def kv_prefix(model: FrozenModel) -> Adapter:
    return KvPrefix(model.network, model.neutral_latent())


both = pytest.mark.parametrize("make", [lora, kv_prefix])


@pytest.fixture(scope="module")
def model(tiny_model: str) -> FrozenModel:
    return TransformersEngine(tiny_model, length=4, placement="user_turn_end", max_model_len=256).model


def examples_of(model: FrozenModel, *, held: bool) -> list[Example]:
    """Return six questions with answers that the model would not give."""
    found = []
    for number in range(6):
        text = "blue" if held else f"it is {number % 3}"
        prompt = model.render([{"role": "user", "content": f"question {number} about {number % 3}"}])
        found.append(
            Example(
                id=str(number),
                digest=str(number),
                prompt=prompt,
                key=np.eye(6, dtype=np.float32)[number],
                max_tokens=8,
                label=Label.of(model.answer_tokens(text), CHOICES if held else ()),
                answer=text,
                held=(),
                known=False,
                seen_at=0.0,
                weight=1.0,
            )
        )
    return found


def decodings(examples: list[Example]) -> list[Decoding]:
    return [Decoding(max_tokens=8, choices=example.choices or None) for example in examples]


def test_an_update_that_was_not_trained_answers_as_the_model_does(model: FrozenModel) -> None:
    for held in (True, False):
        examples = examples_of(model, held=held)
        prompts, ways = [example.prompt for example in examples], decodings(examples)
        plain = model.generate([SteeredPrompt(prompt) for prompt in prompts], ways)
        found = answer(model, lora(model), prompts, ways)
        assert [one.text for one in found] == [one.text for one in plain]


@both
@pytest.mark.parametrize("held", [True, False])
def test_training_makes_labels_likelier_and_leaves_the_model_as_it_was(
    model: FrozenModel, make: Makes, held: bool
) -> None:
    examples = examples_of(model, held=held)
    prompts, ways = [example.prompt for example in examples], decodings(examples)
    plain = [SteeredPrompt(prompt) for prompt in prompts]
    before = model.generate(plain, ways)
    adapter = make(model)
    adapter.learning_rate = 0.05
    means = fit(model, adapter, examples, 8, 0)
    assert np.mean(means[-2:]) > np.mean(means[:2]) + 0.1
    after = answer(model, adapter, prompts, ways)
    if not held:
        assert [one.text for one in after] != [one.text for one in before]
    assert [one.text for one in model.generate(plain, ways)] == [one.text for one in before]


def test_an_update_learns_what_it_is_taught(model: FrozenModel) -> None:
    examples = examples_of(model, held=False)
    adapter = lora(model)
    adapter.learning_rate = 0.02
    fit(model, adapter, examples, 8, 0)
    found = answer(model, adapter, [example.prompt for example in examples], decodings(examples))
    assert all(one.text.startswith("it is ") and one.finish_reason == "stop" for one in found)


@both
def test_all_of_it_is_trained_and_the_same_seed_trains_the_same(model: FrozenModel, make: Makes) -> None:
    examples = examples_of(model, held=True)
    once, again, fresh = make(model), make(model), make(model)
    for adapter in (once, again):
        fit(model, adapter, examples, 2, 3)
    for name, tensor in once.tensors().items():
        assert torch.allclose(tensor, again.tensors()[name], atol=1e-5), name
        assert not torch.equal(tensor, fresh.tensors()[name]), name
