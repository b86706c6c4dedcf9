"""The published step and ours: what each really does."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.step.compare import METHODS, compare, endless, summary
from bench.step.latentseek import LatentSeek
from bench.step.searching import Clock, Step, prompt_of, search_step
from model.engine import Generation
from server.steering.search.evolution import Evolution
from server.steering.search.gradient import Gradient
from server.steering.search.result import Search
from tests.scripted_engine import ScriptedEngine

END = 2
PROMPT = (5, 6, 7, 8)


@pytest.fixture(scope="module")
def network() -> Iterator[Any]:
    """A random model of a few thousand weights, in one thread: several would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        eos_token_id=END,
    )
    yield LlamaForCausalLM(config).eval().requires_grad_(False)
    torch.set_num_threads(threads)


class Both(ScriptedEngine):
    """A scripted engine with a real network for the published step."""

    def __init__(self, network: Any) -> None:
        super().__init__(answer=lambda *_: "never done within twenty tokens")
        self.model = SimpleNamespace(network=network, ends=(END,))


@pytest.fixture
def seeking(network: Any) -> Iterator[LatentSeek]:
    with endless(network, [END]):
        yield LatentSeek(network, PROMPT, 20)


def greedy(network: Any, count: int) -> list[int]:
    """Return a greedy answer without any cache."""
    sequence = torch.tensor([PROMPT])
    for _ in range(count):
        token = network(sequence).logits[:, -1].argmax(dim=-1)
        sequence = torch.cat([sequence, token[None]], dim=1)
    return sequence[0, len(PROMPT) :].tolist()


def test_without_a_reward_the_answer_is_the_greedy_one(network: Any, seeking: LatentSeek) -> None:
    assert seeking.step(0.0) == greedy(network, 20)


def test_reward_moves_the_states_and_leaves_the_weights(network: Any, seeking: LatentSeek) -> None:
    weights = [weight.clone() for weight in network.parameters()]
    answers = [tuple(seeking.step(-1.0)) for _ in range(30)]
    assert len(set(answers)) > 1
    assert all(len(answer) == 20 for answer in answers)
    assert all(torch.equal(a, b) for a, b in zip(weights, network.parameters(), strict=True))


def test_every_token_passes_the_whole_sequence_again(network: Any, seeking: LatentSeek) -> None:
    seen: list[int] = []
    hook = network.base_model.register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0].shape[1])
    )
    seeking.step(-0.5)
    hook.remove()
    assert seen == list(range(len(PROMPT) + 2, len(PROMPT) + 20))  # 2 of 20 tokens come from the states


def test_answer_too_short_to_optimise_is_refused(network: Any) -> None:
    with pytest.raises(ValueError, match="10 are needed"):
        LatentSeek(network, PROMPT, 9)


def test_answers_do_not_end_inside_and_may_end_outside(network: Any) -> None:
    tokens = torch.tensor([PROMPT])
    with torch.no_grad():
        before = network(tokens).logits
        with endless(network, [END, 9]):
            inside = network(tokens).logits
        after = network(tokens).logits
    assert (inside[..., [END, 9]] == torch.finfo(inside.dtype).min).all()
    assert torch.equal(inside[..., 10:], before[..., 10:])
    assert torch.equal(before, after)


@pytest.mark.parametrize(("search", "answers"), [(Gradient(), 5), (Evolution(), 4)])
async def test_one_step_from_answers_to_answers_is_timed(search: Search, answers: int) -> None:
    engine = ScriptedEngine(answer=lambda *_: "never done within twelve tokens")
    step = await search_step(search, engine, prompt_of(engine, "Which?", 12), population=4, seed=1)
    assert len([call for call in engine.calls if call.method == "generate"]) == 3
    assert len(engine.calls[-1].latents) == answers
    assert step.answers == answers
    assert step.tokens == answers * 12
    assert step.seconds > 0


def test_every_method_has_taken_a_step_before_any_is_measured(network: Any) -> None:
    engine = Both(network)
    called: list[list[str]] = []
    found = compare(
        engine,
        "Which?",
        answer_tokens=20,
        population=2,
        repetitions=2,
        progress=lambda *_: called.append([call.method for call in engine.calls]),
    )
    evolution = ["generate", "generate", "generate"]
    gradient = ["generate", "generate", "latent_gradient", "generate"]
    assert called[0] == gradient + evolution
    assert {name: len(steps) for name, steps in found.items()} == dict.fromkeys(METHODS, 2)
    assert summary(found)["answer_tokens"] == 20


async def test_clock_finds_every_answer_better() -> None:
    engine = ScriptedEngine()
    clock, prompt = Clock(), prompt_of(engine, "Which?", 12)
    answers = [Generation("a", (1, 2), "length")] * 3
    rewards = [*await clock.score(prompt, answers, ()), *await clock.score(prompt, answers, ())]
    assert rewards == sorted(rewards)
    assert len(set(rewards)) == 6
    assert 0 < rewards[0] < rewards[-1] < 1
    assert await clock.score(prompt, answers, ()) == [1.0] * 3
    assert [(count, tokens) for _, count, tokens in clock.asked] == [(3, 6)] * 3


def test_summary_counts_per_step_and_per_answer() -> None:
    found = summary(
        {
            "latentseek": [Step(8.0, 1, 10), Step(16.0, 1, 10)],
            "gradient": [Step(4.0, 5, 50), Step(8.0, 5, 50)],
            "evolution": [Step(2.0, 4, 40), Step(4.0, 4, 40)],
        }
    )
    assert found["answer_tokens"] == 10
    assert set(found["methods"]) == set(METHODS)
    gradient = found["methods"]["gradient"]
    assert gradient["times_faster_per_step"]["ratio"] == pytest.approx(2.0)
    assert gradient["times_faster_per_answer"]["ratio"] == pytest.approx(10.0)
    assert gradient["answers_per_step"] == 5
    assert "times_faster_per_step" not in found["methods"]["latentseek"]


def test_answers_of_different_lengths_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different lengths"):
        summary({"latentseek": [Step(1.0, 1, 10)], "gradient": [Step(1.0, 5, 45)]})
