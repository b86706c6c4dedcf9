"""The reference engine against transformers' own functions."""

import asyncio
import threading
from itertools import count
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity

from model.engine import (
    Decoding,
    Engine,
    EngineDeadError,
    Generation,
    Label,
    PlacementError,
    PromptTooLongError,
    SteeredPrompt,
    UnsupportedError,
)
from model.frozen_model import FrozenModel
from model.space import LatentRejectedError
from model.transformers_engine import TransformersEngine

QUESTIONS = ("What is the capital of France?", "Name three fruits.", "Say hello to Anna in one short line.")
GREEDY = Decoding(max_tokens=12)


def chat(engine: TransformersEngine, text: str) -> tuple[int, ...]:
    return engine.render([{"role": "user", "content": text}])


def steered(engine: TransformersEngine, text: str, seed: int = 0) -> SteeredPrompt:
    noise = torch.randn(engine.space.shape, generator=torch.Generator().manual_seed(seed))
    return SteeredPrompt(chat(engine, text), engine.neutral_latent() + 0.05 * noise)


def direct_log_likelihood(
    model: FrozenModel, prompt: SteeredPrompt, answer: tuple[int, ...], latent: torch.Tensor
) -> torch.Tensor:
    """One unbatched forward pass without cache or padding."""
    at = model.position(prompt.token_ids)
    rows = [
        model.embeddings(prompt.token_ids[:at]),
        latent,
        model.embeddings(prompt.token_ids[at:]),
        model.embeddings(answer[:-1]),
    ]
    logits = model.network(inputs_embeds=torch.cat(rows)[None], use_cache=False).logits[0, -len(answer) :]
    return logits.log_softmax(dim=-1).gather(1, torch.tensor(answer)[:, None]).mean()


def test_it_is_an_engine(engine: TransformersEngine) -> None:
    assert isinstance(engine, Engine)


async def test_latents_that_are_token_embeddings_equal_the_token_prompt(
    engine: TransformersEngine, model: FrozenModel
) -> None:
    for placement_offset in (0, 5):
        tokens = chat(engine, QUESTIONS[0])
        at = engine.position(tokens) - placement_offset
        length = engine.space.length
        latent = model.embeddings(tokens[at - length : at])
        without = tokens[: at - length] + tokens[at:]
        mixed = SteeredPrompt(without, latent, position=at - length)
        (from_mixed,) = await engine.generate([mixed], GREEDY)
        (from_tokens,) = await engine.generate([SteeredPrompt(tokens)], GREEDY)
        assert from_mixed.token_ids == from_tokens.token_ids
        both = await engine.log_likelihood(
            [mixed, SteeredPrompt(tokens)], [Label.of(from_tokens.token_ids)] * 2
        )
        assert torch.isclose(both[0], both[1], atol=1e-4)


async def test_greedy_answers_equal_those_of_transformers(
    engine: TransformersEngine, model: FrozenModel
) -> None:
    for question in QUESTIONS:
        tokens = chat(engine, question)
        theirs = model.network.generate(
            torch.tensor([tokens]),
            attention_mask=torch.ones(1, len(tokens)),
            max_new_tokens=12,
            do_sample=False,
        )[0, len(tokens) :]
        (ours,) = await engine.generate([SteeredPrompt(tokens)], GREEDY)
        assert ours.token_ids == tuple(theirs.tolist())
        assert ours.text == model.decode(theirs.tolist())


async def test_batching_does_not_change_answers(engine: TransformersEngine) -> None:
    prompts = [steered(engine, question, seed) for seed, question in enumerate(QUESTIONS)]
    prompts += [SteeredPrompt(prompts[0].token_ids), steered(engine, QUESTIONS[0], 9)]
    decodings = [
        Decoding(max_tokens=6 + seed, temperature=0.8 if seed % 2 else 0.0, top_p=0.9, seed=seed)
        for seed in range(len(prompts))
    ]
    together = await engine.generate(prompts, decodings)
    alone = [(await engine.generate([p], d))[0] for p, d in zip(prompts, decodings, strict=True)]
    assert together == alone


async def test_callers_that_wait_share_a_batch_and_not_their_errors(engine: TransformersEngine) -> None:
    prompts = [steered(engine, question, seed) for seed, question in enumerate(QUESTIONS)]
    wrong = SteeredPrompt(prompts[0].token_ids, torch.full(engine.space.shape, torch.nan))
    alone = [await engine.generate([prompt], GREEDY) for prompt in prompts]
    *together, failed = await asyncio.gather(
        *(engine.generate([prompt], GREEDY) for prompt in prompts),
        engine.generate([wrong], GREEDY),
        return_exceptions=True,
    )
    assert together == alone
    assert isinstance(failed, LatentRejectedError)


async def test_caller_that_gave_up_while_waiting_costs_nothing(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, given_up, later = (SteeredPrompt(chat(engine, question)) for question in QUESTIONS)
    asked: list[SteeredPrompt] = []
    under_way, go_on = threading.Event(), threading.Event()
    generate = engine.model.generate

    def watched(prompts: list[SteeredPrompt], *rest: Any) -> list[Generation]:
        asked.extend(prompts)
        under_way.set()
        assert go_on.wait(30)
        return generate(prompts, *rest)

    monkeypatch.setattr(engine.model, "generate", watched)
    running = asyncio.create_task(engine.generate([first], GREEDY))
    assert await asyncio.to_thread(under_way.wait, 30)
    waiting = asyncio.create_task(engine.generate([given_up], GREEDY))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    go_on.set()
    await running
    await engine.generate([later], GREEDY)
    assert asked == [first, later]


async def test_caller_that_gave_up_while_answered_leaves_the_others_alone(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, given_up, stays = (SteeredPrompt(chat(engine, question)) for question in QUESTIONS)
    alone = await engine.generate([stays], GREEDY)
    written: list[list[Generation]] = []
    begun, go_on = threading.Semaphore(0), threading.Semaphore(0)
    generate = engine.model.generate

    def watched(*arguments: Any) -> list[Generation]:
        begun.release()
        assert go_on.acquire(timeout=30)
        written.append(generate(*arguments))
        return written[-1]

    monkeypatch.setattr(engine.model, "generate", watched)
    running = asyncio.create_task(engine.generate([first], GREEDY))
    assert await asyncio.to_thread(begun.acquire, timeout=30)
    leaving = asyncio.create_task(engine.generate([given_up, given_up], GREEDY))
    staying = asyncio.create_task(engine.generate([stays], GREEDY))
    await asyncio.sleep(0)  # both wait for the thread, and will share a batch
    go_on.release()
    await running
    assert await asyncio.to_thread(begun.acquire, timeout=30)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    go_on.release()
    assert await staying == alone
    assert [len(answer.token_ids) for answer in written[1]] == [0, 0, len(alone[0].token_ids)]


def test_answer_that_is_given_up_ends_within_a_token(engine: TransformersEngine) -> None:
    prompt = SteeredPrompt(chat(engine, QUESTIONS[1]))
    looks = count(1)  # before the first token, and after each
    (whole,) = engine.model.generate([prompt], [GREEDY])
    cut, other = engine.model.generate([prompt] * 2, [GREEDY] * 2, [lambda: next(looks) > 3, lambda: False])
    assert (cut.token_ids, cut.finish_reason) == (whole.token_ids[:3], "length")
    assert other == whole


async def test_samples_follow_their_seed(engine: TransformersEngine) -> None:
    prompt = SteeredPrompt(chat(engine, "Make up a name for a cat."))
    seeds = [1, 1, 2, 3, 4]
    answers = await engine.generate(
        [prompt] * 5, [Decoding(max_tokens=8, temperature=1.0, seed=seed) for seed in seeds]
    )
    assert answers[0] == answers[1]
    assert len({answer.token_ids for answer in answers}) > 1


async def test_log_likelihood_equals_a_direct_forward_pass(
    engine: TransformersEngine, model: FrozenModel
) -> None:
    prompts = [steered(engine, question, seed) for seed, question in enumerate(QUESTIONS)]
    answers = [(510, 3575, 282, 4649), (33,), (504, 6541, 2)]
    ours = await engine.log_likelihood(prompts, list(map(Label.of, answers)))
    for value, prompt, answer in zip(ours, prompts, answers, strict=True):
        assert prompt.latent is not None
        assert torch.isclose(value, direct_log_likelihood(model, prompt, answer, prompt.latent), atol=1e-4)


async def test_latent_gradient_equals_autograd_over_the_whole_prompt(
    engine: TransformersEngine, model: FrozenModel
) -> None:
    prompts = [steered(engine, question, seed) for seed, question in enumerate(QUESTIONS)]
    answers = [(510, 3575, 282, 4649), (33,), (504, 6541, 2)]
    weights = [1.0, -0.5, 2.0]
    ours = await engine.latent_gradient(prompts, list(map(Label.of, answers)), weights)
    for at, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        assert prompt.latent is not None
        leaf = prompt.latent.clone().requires_grad_()
        value = direct_log_likelihood(model, prompt, answer, leaf)
        (expected,) = torch.autograd.grad(weights[at] * value, leaf)
        assert torch.isclose(ours.log_likelihood[at], value.detach(), atol=1e-4)
        assert torch.allclose(ours.gradient[at], expected, atol=1e-4 * float(expected.abs().max()) + 1e-6)
    assert all(parameter.grad is None for parameter in model.network.parameters())
    assert not any(parameter.requires_grad for parameter in model.network.parameters())


async def test_latent_gradient_agrees_with_finite_differences_in_direction(
    engine: TransformersEngine,
) -> None:
    prompt = steered(engine, QUESTIONS[0])
    assert prompt.latent is not None
    answer = (510, 3575, 282, 4649)
    exact = (await engine.latent_gradient([prompt], [Label.of(answer)], [1.0])).gradient[0].flatten()
    # The derivative along random directions: what an ascent along any of them would see.
    directions = torch.randn(24, exact.numel(), generator=torch.Generator().manual_seed(1))
    directions /= directions.norm(dim=-1, keepdim=True)
    step = 0.03 * float(prompt.latent.norm())
    probes = [
        SteeredPrompt(prompt.token_ids, prompt.latent + sign * step * direction.view_as(prompt.latent))
        for direction in directions
        for sign in (1, -1)
    ]
    values = (await engine.log_likelihood(probes, [Label.of(answer)] * len(probes))).view(-1, 2)
    measured = (values[:, 0] - values[:, 1]) / (2 * step)
    assert cosine_similarity(measured, directions @ exact, dim=0) > 0.99


async def test_ascent_on_a_latent_makes_an_answer_likelier(engine: TransformersEngine) -> None:
    tokens = chat(engine, QUESTIONS[0])
    label = Label.of(engine.answer_tokens("Lyon, of course."))
    latent = engine.neutral_latent()
    before = await engine.log_likelihood([SteeredPrompt(tokens, latent)], [label])
    for _ in range(6):
        step = await engine.latent_gradient([SteeredPrompt(tokens, latent)], [label], [1.0])
        latent = latent + 0.1 * latent.norm() * step.gradient[0] / step.gradient[0].norm()
    after = await engine.log_likelihood([SteeredPrompt(tokens, latent)], [label])
    assert after[0] > before[0] + 0.5


async def test_choices_are_held_also_when_one_begins_another(engine: TransformersEngine) -> None:
    choices = ("0.1", "0.10", "0.9", "yes indeed")
    prompts = [SteeredPrompt(chat(engine, question)) for question in QUESTIONS]
    decodings = [
        Decoding(max_tokens=8, temperature=2.0, seed=seed, choices=choices, logprobs=True)
        for seed in range(len(prompts))
    ]
    for answer in await engine.generate(prompts, decodings):
        assert answer.text in choices
        assert answer.finish_reason == "stop"
        assert len(answer.logprobs) == len(answer.token_ids)
        assert all(value < 0 for value in answer.logprobs)


async def test_answers_end_at_stop_strings_limits_and_the_end_token(real_engine: TransformersEngine) -> None:
    prompt = SteeredPrompt(chat(real_engine, QUESTIONS[0]))
    whole, stopped, cut = await real_engine.generate(
        [prompt] * 3,
        [Decoding(max_tokens=40), Decoding(max_tokens=40, stop=("France",)), Decoding(max_tokens=2)],
    )
    assert whole.finish_reason == "stop"
    assert whole.token_ids[-1] == real_engine.model.tokenizer.eos_token_id
    assert "France" in whole.text
    assert stopped.text == whole.text[: whole.text.index("France")]
    assert stopped.finish_reason == "stop"
    assert (cut.finish_reason, len(cut.token_ids)) == ("length", 2)


async def test_keys_have_norm_one_and_tell_tasks_apart(real_engine: TransformersEngine) -> None:
    headline = "Which topic is this headline about: World, Sports, Business or Technology? One word.\n\n{}"
    texts = [
        headline.format("Team wins the cup after extra time"),
        headline.format("Central bank lifts interest rates"),
        headline.format("New phone folds twice"),
        "Write a haiku about autumn rain.",
        "Tom has 4 apples and buys 7 more. How many apples has he now?",
    ]
    keys = await real_engine.keys([chat(real_engine, text) for text in texts])
    similarity = keys @ keys.T
    assert torch.allclose(keys.norm(dim=-1), torch.ones(len(texts)), atol=1e-5)
    same = similarity[:3, :3][~torch.eye(3, dtype=torch.bool)]
    assert same.min() > 0.6
    assert similarity[:3, 3:].max() < 0.6
    assert same.min() > similarity[:3, 3:].max() + 0.2


async def test_raw_states_equal_the_last_hidden_state(engine: TransformersEngine, model: FrozenModel) -> None:
    prompts = [chat(engine, question) for question in QUESTIONS]
    states = await engine.raw_states(prompts)
    for state, prompt in zip(states, prompts, strict=True):
        with torch.no_grad():
            expected = model.network.model(torch.tensor([prompt])).last_hidden_state[0, -1]
        assert cosine_similarity(state, expected, dim=0) > 0.99999


async def test_bad_prompts_are_refused(engine: TransformersEngine) -> None:
    tokens = chat(engine, QUESTIONS[0])
    neutral = engine.neutral_latent()
    with pytest.raises(LatentRejectedError):
        await engine.generate([SteeredPrompt(tokens, neutral[:, 1:])], GREEDY)
    with pytest.raises(LatentRejectedError):
        await engine.latent_gradient([SteeredPrompt(tokens, neutral * float("nan"))], [Label.of((1,))], [1.0])
    with pytest.raises(PlacementError):
        await engine.generate([SteeredPrompt(tokens[:-1], neutral)], GREEDY)
    with pytest.raises(PlacementError):
        await engine.generate([SteeredPrompt(tokens, neutral, position=len(tokens) + 1)], GREEDY)
    with pytest.raises(PromptTooLongError):
        await engine.generate([SteeredPrompt(tokens * 100)], GREEDY)
    with pytest.raises(UnsupportedError):
        await engine.generate([SteeredPrompt(tokens)], Decoding(max_tokens=4, native=object()))


async def test_the_loop_goes_on_while_the_model_works(engine: TransformersEngine) -> None:
    working = asyncio.create_task(engine.generate([steered(engine, QUESTIONS[1])], Decoding(max_tokens=16)))
    ticks = 0
    while not working.done():
        await asyncio.sleep(0.001)
        ticks += 1
    assert ticks > 3
    await working


async def test_a_closed_engine_says_so(tiny_model: str) -> None:
    engine = TransformersEngine(tiny_model, length=2, placement="after_header", dtype=torch.bfloat16)
    tokens = chat(engine, QUESTIONS[0])
    assert engine.position(tokens) == len(tokens)
    (answer,) = await engine.generate(
        [SteeredPrompt(tokens, engine.neutral_latent())], Decoding(max_tokens=3)
    )
    assert len(answer.token_ids) <= 3
    await engine.close()
    with pytest.raises(EngineDeadError):
        await engine.keys([tokens])


def test_all_ends_of_a_model_are_known(
    model: FrozenModel, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = model.ends[0]
    monkeypatch.setattr(model.network.generation_config, "eos_token_id", [9, first])
    again = FrozenModel(tiny_model, length=4, placement="user_turn_end", network=model.network)
    assert again.ends == (first, 9)
