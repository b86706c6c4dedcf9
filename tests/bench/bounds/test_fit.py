"""What is trained in place of a latent, on random weights."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from bench.bounds.adapters import Adapter, KvPrefix, Lora, SoftPrompt
from bench.bounds.fit import Rise, answer, fit
from bench.bounds.teach import VOTES, by_certainty, by_labels, by_majority, entropy
from model.choice_trie import ChoiceTrie
from model.engine import Decoding, Generation, Label, SteeredPrompt
from model.frozen_model import FrozenModel
from model.target import Target
from model.transformers_engine import TransformersEngine
from server.steering.prompt import RenderedPrompt
from tests.worker.conftest import one_thread
from worker.dataset import Example

__all__ = ["one_thread"]  # autouse, here as there

CHOICES = ("red", "green", "blue")
Makes = Callable[[FrozenModel], Adapter]


def lora(model: FrozenModel) -> Adapter:
    return Lora(model.network, 4, 0)


def kv_prefix(model: FrozenModel) -> Adapter:
    return KvPrefix(model.network, model.neutral_latent())


def soft_prompt(model: FrozenModel) -> Adapter:
    return SoftPrompt(model.neutral_latent(), 4)


every = pytest.mark.parametrize("make", [lora, kv_prefix, soft_prompt])


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


def trained(adapter: Adapter, rise: Rise, count: int, passes: int, seed: int = 0) -> list[float]:
    return [told.value for told in fit(adapter, rise, count, passes=passes, batch=4, seed=seed)]


def answers(model: FrozenModel, adapter: Adapter, examples: list[Example]) -> list[Generation]:
    with adapter.attached():
        return answer(model, adapter, [example.prompt for example in examples], decodings(examples))


def asked(model: FrozenModel, *, held: bool) -> list[RenderedPrompt]:
    examples = examples_of(model, held=held)
    return [
        RenderedPrompt(example.prompt, example.id, example.id, how)
        for example, how in zip(examples, decodings(examples), strict=True)
    ]


def test_an_update_that_was_not_trained_answers_as_the_model_does(model: FrozenModel) -> None:
    for held in (True, False):
        examples = examples_of(model, held=held)
        prompts, ways = [example.prompt for example in examples], decodings(examples)
        plain = model.generate([SteeredPrompt(prompt) for prompt in prompts], ways)
        found = answers(model, lora(model), examples)
        assert [one.text for one in found] == [one.text for one in plain]


@every
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
    means = trained(adapter, by_labels(model, adapter, examples), 6, 8)
    assert np.mean(means[-2:]) > np.mean(means[:2]) + 0.1
    after = answers(model, adapter, examples)
    if not held:
        assert [one.text for one in after] != [one.text for one in before]
    assert [one.text for one in model.generate(plain, ways)] == [one.text for one in before]


def test_an_update_learns_what_it_is_taught(model: FrozenModel) -> None:
    examples = examples_of(model, held=False)
    adapter = lora(model)
    adapter.learning_rate = 0.02
    trained(adapter, by_labels(model, adapter, examples), 6, 8)
    found = answers(model, adapter, examples)
    assert all(one.text.startswith("it is ") and one.finish_reason == "stop" for one in found)


@every
def test_all_of_it_is_trained_and_the_same_seed_trains_the_same(model: FrozenModel, make: Makes) -> None:
    examples = examples_of(model, held=True)
    once, again, fresh = make(model), make(model), make(model)
    for adapter in (once, again):
        trained(adapter, by_labels(model, adapter, examples), 6, 2, 3)
    for name, tensor in once.tensors().items():
        assert torch.allclose(tensor, again.tensors()[name], atol=1e-5), name
        assert not torch.equal(tensor, fresh.tensors()[name]), name


@pytest.mark.parametrize("held", [True, False])
def test_certainty_rises_where_it_is_asked_for(model: FrozenModel, held: bool) -> None:
    prompts, rows = asked(model, held=held), soft_prompt(model)
    rows.learning_rate = 0.05
    means = trained(rows, by_certainty(model, rows, prompts), 6, 8)
    assert np.mean(means[-2:]) < np.mean(means[:2])
    assert min(means) >= 0


def test_entropy_is_that_of_the_tokens_a_grammar_allows(model: FrozenModel) -> None:
    even = torch.zeros(1, 50)
    assert float(entropy(Target((7,)), even)) == pytest.approx(np.log(50))
    tokens = [list(model.answer_tokens(choice)[:-1]) for choice in ("red", "blue")]
    trie = ChoiceTrie(tokens, model.ends[0])
    target = Target((*tokens[0], model.ends[0]), trie)
    logits = torch.zeros(len(target.decided), max(max(tokens, key=max)) + model.ends[0] + 1)
    assert float(entropy(target, logits)) == pytest.approx(np.log(2))


def test_samples_come_to_agree_where_the_majority_is_rewarded(model: FrozenModel) -> None:
    prompts, update = asked(model, held=True), lora(model)
    update.learning_rate = 0.02
    told = fit(update, by_majority(model, update, prompts, 0), 6, passes=8, batch=3, seed=0)
    shares = [one.value for one in told]
    assert np.mean(shares[-2:]) > np.mean(shares[:2])
    assert all(1 / VOTES <= share <= 1 for share in shares)
    read = sum(len(prompt.token_ids) for prompt in prompts[:3]) * VOTES
    assert all(one.forward > read for one in told)
