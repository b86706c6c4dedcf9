"""What labels are worth, against each answer computed by itself; and how few rows that takes."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity

from model.engine import Decoding, Label, SteeredPrompt
from model.frozen_model import FrozenModel
from model.transformers_engine import TransformersEngine
from tests.model.conftest import LENGTH

TOPICS = ("World", "Sports", "Business", "Technology")
GRADES = ("grade", "grade A")
PATHS = ("red apple", "red pear", "blue sky", "blue sea", "green")
KINDS = ("fruit", "fruit salad", "animal", "tool")
SETS = [TOPICS, GRADES, PATHS, KINDS]


@pytest.fixture(scope="module")
def engine(tiny_model: str) -> TransformersEngine:
    """Random weights will do: what is compared are two ways through the same network."""
    return TransformersEngine(tiny_model, length=LENGTH, placement="user_turn_end", max_model_len=1024)


@dataclass
class Passes:
    """What went through the network."""

    rows: list[int] = field(default_factory=list)
    """Of each pass, without those of prompts' beginnings."""
    columns: list[int] = field(default_factory=list)
    """Of each pass, whose logits were computed."""


@pytest.fixture
def passes(model: FrozenModel) -> Iterator[Passes]:
    seen = Passes()

    def body(module: Any, args: Any, kwargs: Any) -> None:
        if kwargs.get("inputs_embeds") is not None:
            seen.rows.append(len(kwargs["inputs_embeds"]))

    def head(module: Any, args: Any) -> None:
        seen.columns.append(args[0].shape[1])

    handles = [
        model.network.base_model.register_forward_pre_hook(body, with_kwargs=True),
        model.network.get_output_embeddings().register_forward_pre_hook(head),
    ]
    yield seen
    for handle in handles:
        handle.remove()


def steered(engine: TransformersEngine, text: str = "Which one? hammer", seed: int = 0) -> SteeredPrompt:
    noise = torch.randn(engine.space.shape, generator=torch.Generator().manual_seed(seed))
    tokens = engine.render([{"role": "user", "content": text}])
    return SteeredPrompt(tokens, engine.neutral_latent() + 0.05 * noise)


def soft(engine: TransformersEngine, choices: tuple[str, ...]) -> Label:
    """All choices, the first the least likely."""
    total = sum(range(1, len(choices) + 1))
    answers = tuple(engine.answer_tokens(choice) for choice in choices)
    return Label(answers, tuple(at / total for at in range(1, len(choices) + 1)), choices)


def expected(model: FrozenModel, prompt: SteeredPrompt, latent: torch.Tensor, label: Label) -> torch.Tensor:
    """Each answer in a pass of its own, without cache or padding, its tokens among those that may follow."""
    at = model.position(prompt.token_ids)
    whole = [model.answer_tokens(choice) for choice in label.choices]
    total = torch.zeros(())
    for answer, probability in zip(label.answers, label.probabilities, strict=True):
        before, after = model.embeddings(prompt.token_ids[:at]), model.embeddings(prompt.token_ids[at:])
        mixed = torch.cat([before, latent, after, model.embeddings(answer)])
        logits = model.network(inputs_embeds=mixed[None], use_cache=False).logits[0, -len(answer) - 1 :]
        steps = []
        for place, token in enumerate(answer):
            allowed = sorted({one[place] for one in whole if one[:place] == answer[:place]})
            if not label.choices:
                allowed = list(range(logits.shape[1]))
            steps.append(logits[place, allowed].log_softmax(dim=0)[allowed.index(token)])
        value = torch.stack(steps)
        total = total + probability * (value.sum() if label.choices else value.mean())
    return total


@pytest.mark.parametrize("choices", SETS)
async def test_soft_labels_are_worth_what_their_answers_are_one_by_one(
    engine: TransformersEngine, model: FrozenModel, choices: tuple[str, ...]
) -> None:
    prompt, label = steered(engine), soft(engine, choices)
    assert prompt.latent is not None
    leaf = prompt.latent.clone().requires_grad_()
    value = expected(model, prompt, leaf, label)
    (gradient,) = torch.autograd.grad(-2.0 * value, leaf)
    found = await engine.latent_gradient([prompt], [label], [-2.0])
    torch.testing.assert_close(found.log_likelihood[0], value.detach(), atol=1e-4, rtol=1e-4)
    assert torch.allclose(found.gradient[0], gradient, atol=1e-3 * float(gradient.abs().max()))
    torch.testing.assert_close(await engine.log_likelihood([prompt], [label]), found.log_likelihood)


async def test_labels_of_all_kinds_stand_beside_each_other_in_one_batch(
    engine: TransformersEngine, model: FrozenModel
) -> None:
    texts = ("Which one? hammer", "Name one.", "A longer question: which of them all is it, and why?")
    prompts = [steered(engine, text, seed) for seed, text in enumerate(texts)] * 2
    free = Label.of((510, 3575, 282, 4649))
    two_free = Label(((510, 3575), (510, 33, 2)), (0.25, 0.75))
    labels = [soft(engine, PATHS), free, soft(engine, TOPICS), two_free, soft(engine, GRADES), free]
    weights = [1.0, -0.5, 2.0, 1.0, 3.0, 0.0]
    found = await engine.latent_gradient(prompts, labels, weights)
    values = await engine.log_likelihood(prompts, labels)
    for at, (prompt, label) in enumerate(zip(prompts, labels, strict=True)):
        assert prompt.latent is not None
        leaf = prompt.latent.clone().requires_grad_()
        value = expected(model, prompt, leaf, label)
        (gradient,) = torch.autograd.grad(weights[at] * value, leaf)
        for ours in (found.log_likelihood[at], values[at]):
            torch.testing.assert_close(ours, value.detach(), atol=1e-4, rtol=1e-4)
        assert torch.allclose(found.gradient[at], gradient, atol=1e-3 * float(gradient.abs().max()))


async def test_gradient_of_a_soft_label_agrees_with_finite_differences(engine: TransformersEngine) -> None:
    prompt, label = steered(engine), soft(engine, PATHS)
    assert prompt.latent is not None
    exact = (await engine.latent_gradient([prompt], [label], [1.0])).gradient[0].flatten()
    directions = torch.randn(16, exact.numel(), generator=torch.Generator().manual_seed(1))
    directions /= directions.norm(dim=-1, keepdim=True)
    step = 0.03 * float(prompt.latent.norm())
    probes = [
        SteeredPrompt(prompt.token_ids, prompt.latent + sign * step * direction.view_as(prompt.latent))
        for direction in directions
        for sign in (1, -1)
    ]
    values = (await engine.log_likelihood(probes, [label] * len(probes))).view(-1, 2)
    measured = (values[:, 0] - values[:, 1]) / (2 * step)
    assert cosine_similarity(measured, directions @ exact, dim=0) > 0.99


async def test_choices_that_branch_at_their_first_token_cost_one_row_and_column_per_prompt(
    engine: TransformersEngine, passes: Passes
) -> None:
    prompts = [steered(engine, text, seed) for seed, text in enumerate(("hammer", "apple", "horse"))]
    await engine.latent_gradient(prompts, [soft(engine, TOPICS)] * 3, [1.0] * 3)
    assert (passes.rows, passes.columns) == ([3], [1])


@pytest.mark.parametrize(("choices", "rows"), [(GRADES, 1), (KINDS, 1), (PATHS, 2)])
async def test_each_way_to_a_last_branching_costs_one_row(
    engine: TransformersEngine, passes: Passes, choices: tuple[str, ...], rows: int
) -> None:
    await engine.latent_gradient([steered(engine)], [soft(engine, choices)], [1.0])
    assert passes.rows == [rows]


async def test_labels_of_one_prompt_and_latent_share_their_rows(
    engine: TransformersEngine, passes: Passes
) -> None:
    one, other = steered(engine), steered(engine, seed=1)
    labels = [Label.of(engine.answer_tokens(topic), TOPICS) for topic in TOPICS]
    assert one.latent is not None
    again = SteeredPrompt(one.token_ids, one.latent.clone())
    plain = SteeredPrompt(one.token_ids)
    values = await engine.log_likelihood([one, again, one, again], labels)
    assert passes.rows == [1]
    torch.testing.assert_close(values.exp().sum(), torch.tensor(1.0))
    apart = await engine.log_likelihood([one, other, plain, plain], [labels[0]] * 4)
    assert sum(passes.rows[1:]) == 3
    assert len(set(apart.tolist())) == 3
    assert apart[2] == apart[3]


async def test_answer_that_is_the_only_choice_costs_nothing(
    engine: TransformersEngine, passes: Passes
) -> None:
    only = Label.of(engine.answer_tokens("World"), ("World",))
    found = await engine.latent_gradient([steered(engine)], [only], [1.0])
    assert not passes.rows
    assert not found.log_likelihood.any()
    assert not found.gradient.any()
    assert not (await engine.log_likelihood([steered(engine)], [only])).any()


async def test_likelihoods_among_choices_are_the_odds_of_decoding_them(engine: TransformersEngine) -> None:
    prompt = steered(engine)
    for choices in (KINDS, TOPICS):
        labels = [Label.of(engine.answer_tokens(choice), choices) for choice in choices]
        values = await engine.log_likelihood([prompt] * len(choices), labels)
        torch.testing.assert_close(values.exp().sum(), torch.tensor(1.0))
    (greedy,) = await engine.generate([prompt], Decoding(max_tokens=8, choices=TOPICS))
    assert greedy.text == TOPICS[int(values.argmax())]
    free = await engine.log_likelihood([prompt], [Label.of(labels[0].answers[0])])
    assert free[0] < values[0]


async def test_gradient_among_choices_takes_from_the_others_what_it_gives_to_one(
    engine: TransformersEngine,
) -> None:
    prompt = steered(engine)
    labels = [Label.of(engine.answer_tokens(kind), KINDS) for kind in KINDS]
    odds = (await engine.log_likelihood([prompt] * len(KINDS), labels)).exp()
    found = await engine.latent_gradient([prompt] * len(KINDS), labels, odds.tolist())
    # Probabilities sum to 1 wherever the latent stands.
    size = found.gradient.norm(dim=(1, 2)).max()
    assert found.gradient.sum(dim=0).norm() < 1e-3 * size


async def test_answer_that_is_none_of_its_choices_is_refused(engine: TransformersEngine) -> None:
    with pytest.raises(ValueError, match="none of its choices"):
        await engine.log_likelihood([steered(engine)], [Label.of(engine.answer_tokens("stone"), KINDS)])


@pytest.mark.parametrize(
    ("answers", "probabilities", "message"),
    [
        (((),), (1.0,), "no tokens"),
        (((1,), (2,)), (1.0,), "2 answers have 1 probabilities"),
        (((1,), (2,)), (1.0, 0.0), "above 0"),
        (((1,), (2,)), (0.5, 0.4), "a sum of 1"),
        (((1,),), (float("nan"),), "a sum of 1"),
        ((), (), "a sum of 1"),
    ],
)
def test_labels_that_are_no_distribution_are_refused(
    answers: tuple[tuple[int, ...], ...], probabilities: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Label(answers, probabilities)
