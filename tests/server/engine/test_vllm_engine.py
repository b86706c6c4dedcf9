"""The engine protocol on real vLLM."""

import asyncio
from typing import Any

import pytest
import torch

from model.engine import (
    Decoding,
    Generation,
    Label,
    PlacementError,
    PromptTooLongError,
    SteeredPrompt,
    cache_salt,
    in_background,
)
from model.space import LatentRejectedError
from server.engine.launch import Launched
from server.engine.self_check import run_checks
from server.engine.vllm import BEHIND, VLLMEngine

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="session")]

LONG = "Describe the harbour of a small town, its boats and the people who work there. " * 12


@pytest.fixture
def engine(launched: Launched) -> VLLMEngine:
    return launched.engine


def prompt(engine: VLLMEngine, text: str) -> tuple[int, ...]:
    return engine.render([{"role": "user", "content": text}])


def nudge(engine: VLLMEngine) -> torch.Tensor:
    """Return a latent that changes answers: the neutral one, scaled up and mixed."""
    noise = torch.randn(engine.space.shape, generator=torch.Generator().manual_seed(3))
    neutral = engine.neutral_latent()
    return torch.add(neutral, noise / noise.norm() * neutral.norm() * 2)


async def test_self_checks_pass_and_measure(launched: Launched, engine: VLLMEngine) -> None:
    checks = {check.name: check for check in await run_checks(engine, launched.args)}
    assert all(check.ok for check in checks.values()), checks
    assert checks["log-probabilities"].value == checks["mixed-prompt"].value == 1
    assert checks["key"].value is not None
    assert checks["key"].value > 0.999
    assert checks["gradient"].value is not None


async def test_keys_of_concurrent_prompts_are_not_mixed_up(engine: VLLMEngine) -> None:
    prompts = [prompt(engine, f"What is {n} times {n + 3}?") for n in range(6)]
    prompts.append(prompt(engine, LONG))  # 220 tokens: prefilled in chunks of 128
    traffic = [
        engine.generate([SteeredPrompt(prompt(engine, f"Tell me about the number {n}."))], Decoding(24))
        for n in range(5)
    ]
    found = asyncio.create_task(engine.raw_states(prompts))
    await asyncio.gather(found, *traffic)
    assert engine.gradient_worker is not None
    reference = await engine.gradient_worker.raw_states(prompts)
    assert torch.nn.functional.cosine_similarity(found.result(), reference).min() > 0.999


async def test_keys_are_centred_and_of_norm_one(engine: VLLMEngine) -> None:
    keys = await engine.keys([prompt(engine, "What is 4 times 7?"), prompt(engine, "Write a sad poem.")])
    assert keys.norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-4)
    assert float(keys[0] @ keys[1]) < 0.6


async def test_key_pass_is_the_prefill_of_the_steered_pass(engine: VLLMEngine) -> None:
    from vllm import SamplingParams

    tokens = prompt(engine, LONG + "In a storm.")
    await engine.keys([tokens])
    steered = engine.mixed_input(tokens, engine.neutral_latent())
    async for output in engine.llm.generate(steered, SamplingParams(max_tokens=1), "reuse"):
        assert output.prompt_token_ids == list(tokens)
        assert output.num_cached_tokens >= engine.position(tokens) - 32


async def test_latent_changes_the_answer_and_only_its_own(engine: VLLMEngine) -> None:
    tokens = prompt(engine, "Name three rivers.")
    plain, steered, again = await engine.generate(
        [SteeredPrompt(tokens), SteeredPrompt(tokens, nudge(engine)), SteeredPrompt(tokens)], Decoding(24)
    )
    assert plain.token_ids == again.token_ids
    assert steered.token_ids != plain.token_ids


async def test_same_seed_same_sample(engine: VLLMEngine) -> None:
    tokens = SteeredPrompt(prompt(engine, "Tell me a story."), nudge(engine))
    first, other = await engine.generate(
        [tokens, tokens], [Decoding(16, temperature=1.0, seed=seed) for seed in (1, 2)]
    )
    (again,) = await engine.generate([tokens], Decoding(16, temperature=1.0, seed=1))
    assert first.token_ids == again.token_ids
    assert first.token_ids != other.token_ids


async def test_a_seed_holds_for_a_prompt_that_is_read_in_parts(engine: VLLMEngine) -> None:
    drawn = Decoding(8, temperature=1.0, seed=11)
    long = [SteeredPrompt(prompt(engine, f"{LONG} {n} boats come in.")) for n in range(3)]
    in_parts = await engine.generate(long, [drawn] * 3)
    (alone,) = await engine.generate(long[:1], drawn)  # what stands before the last block is cached
    assert alone.token_ids == in_parts[0].token_ids
    assert len(set(in_parts[0].token_ids)) > 1


async def test_answers_keep_to_choices(engine: VLLMEngine) -> None:
    tokens = SteeredPrompt(prompt(engine, "Is the sea salty?"), engine.neutral_latent())
    (chosen,) = await engine.generate([tokens], Decoding(8, choices=("perhaps", "never")))
    assert chosen.text in ("perhaps", "never")


async def test_logprobs_are_those_of_the_chosen_tokens(engine: VLLMEngine) -> None:
    (answer,) = await engine.generate(
        [SteeredPrompt(prompt(engine, "Count to three."))], Decoding(8, logprobs=True)
    )
    assert len(answer.logprobs) == len(answer.token_ids)
    assert all(value <= 0 for value in answer.logprobs)


async def test_stop_string_ends_the_answer(engine: VLLMEngine) -> None:
    tokens = SteeredPrompt(prompt(engine, "Count from 1 to 9, with commas."))
    (whole,) = await engine.generate([tokens], Decoding(24))
    stop = whole.text[3:6]
    (stopped,) = await engine.generate([tokens], Decoding(24, stop=(stop,)))
    assert stopped.finish_reason == "stop"
    assert stopped.text == whole.text[: whole.text.index(stop)]


async def test_cancellation_aborts_in_vllm(engine: VLLMEngine) -> None:
    tokens = SteeredPrompt(prompt(engine, "Count as far as you can."), engine.neutral_latent())
    task = asyncio.create_task(engine.generate([tokens] * 3, Decoding(400, temperature=1.5, seed=0)))
    while engine.llm.get_num_unfinished_requests() < 3:  # noqa: ASYNC110 - vLLM has no event for it
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.llm.get_num_unfinished_requests() == 0


async def test_cancellation_of_keys_aborts_in_vllm(engine: VLLMEngine) -> None:
    task = asyncio.create_task(engine.raw_states([prompt(engine, LONG)] * 3))
    while engine.llm.get_num_unfinished_requests() < 3:  # noqa: ASYNC110 - vLLM has no event for it
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.llm.get_num_unfinished_requests() == 0


async def test_bad_latents_are_refused_before_the_engine(engine: VLLMEngine) -> None:
    tokens = prompt(engine, "Hello.")
    broken = engine.neutral_latent()
    broken[0, 0] = float("nan")
    for latent in (broken, torch.zeros(3, 4)):
        with pytest.raises(LatentRejectedError):
            await engine.generate([SteeredPrompt(tokens, latent)], Decoding(4))


async def test_prompt_without_place_or_room_is_refused(engine: VLLMEngine) -> None:
    with pytest.raises(PlacementError):
        await engine.generate([SteeredPrompt(tuple(range(50, 70)), engine.neutral_latent())], Decoding(4))
    long = prompt(engine, "word " * (engine.max_model_len - 45))
    assert len(long) < engine.max_model_len
    with pytest.raises(PromptTooLongError):
        await engine.generate([SteeredPrompt(long, engine.neutral_latent())], Decoding(4))


async def test_salted_prompts_share_no_cache(engine: VLLMEngine) -> None:
    from model.engine import cache_salt

    token = cache_salt.set("tenant a")
    try:
        salted = engine.mixed_input(prompt(engine, "Hello."))
    finally:
        cache_salt.reset(token)
    assert salted["cache_salt"] == "tenant a"
    assert "cache_salt" not in engine.mixed_input(prompt(engine, "Hello."))


async def test_choices_are_as_likely_as_the_gradient_worker_says(engine: VLLMEngine) -> None:
    """Some choices begin alike, and one begins another."""
    choices = ("World", "Sports", "Business", "Busy", "Business news", "World of sports")
    latent = nudge(engine)
    prompts = [
        SteeredPrompt(prompt(engine, "Which topic? Rain stops the final.")),
        SteeredPrompt(prompt(engine, "Which topic? Rain stops the final."), latent),
        SteeredPrompt(prompt(engine, LONG), latent),
    ]
    answers = [engine.answer_tokens(choice) for choice in choices]
    for held in (True, False):
        found = await engine.choice_log_probabilities(prompts, choices, held=held)
        values = await engine.log_likelihood(
            [each for each in prompts for _ in choices],
            [Label.of(answer, choices if held else ()) for _ in prompts for answer in answers],
        )
        lengths = torch.tensor([1.0 if held else float(len(answer)) for answer in answers])
        wanted = (values.reshape(found.shape) * lengths).log_softmax(dim=1)
        torch.testing.assert_close(found, wanted, atol=2e-3, rtol=1e-3)
        assert found.exp().sum(dim=1).tolist() == pytest.approx([1, 1, 1], abs=1e-4)
        assert (await engine.choice_log_probabilities(prompts[:1], ("World",), held=held)).tolist() == [[0.0]]


async def test_token_prompts_and_steered_ones_share_what_stands_before_the_latent(engine: VLLMEngine) -> None:
    """And what comes of it is what a cold cache gives."""
    from vllm import SamplingParams
    from vllm.inputs import tokens_input

    async def plain(salt: str) -> Any:
        outputs = engine.llm.generate(
            tokens_input(list(tokens), cache_salt=salt), SamplingParams(max_tokens=8, temperature=0.0), salt
        )
        return [output async for output in outputs][-1]

    async def steered(salt: str) -> Generation:
        token = cache_salt.set(salt)
        (answer,) = await engine.generate([SteeredPrompt(tokens, latent)], Decoding(8, logprobs=True))
        cache_salt.reset(token)
        return answer

    tokens, latent = prompt(engine, LONG + "In a calm."), nudge(engine)
    before = engine.position(tokens) - 32
    cold = await steered("share-cold")
    alone = await plain("share-alone")
    await plain("share-1")
    warm = await steered("share-1")
    assert warm.native[-1].num_cached_tokens >= before
    assert warm.token_ids == cold.token_ids
    assert warm.logprobs == pytest.approx(cold.logprobs, abs=1e-3)
    await steered("share-2")
    after = await plain("share-2")
    assert after.num_cached_tokens >= before
    assert after.outputs[0].token_ids == alone.outputs[0].token_ids
    other = await steered("share-3")
    assert other.native[-1].num_cached_tokens == 0


async def test_only_rows_of_the_latent_travel(engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    send = engine.llm.engine_core._send_input

    def sending(kind: Any, request: Any, *args: Any) -> Any:
        if hasattr(request, "prompt_embeds"):
            sent.append(request.prompt_embeds)
        return send(kind, request, *args)

    monkeypatch.setattr(engine.llm.engine_core, "_send_input", sending)
    tokens, latent = prompt(engine, LONG), nudge(engine)
    await engine.generate([SteeredPrompt(tokens, latent)], Decoding(1))
    await engine.keys([tokens])
    await engine.generate([SteeredPrompt(tokens)], Decoding(1))
    assert [None if rows is None else rows.tolist() for rows in sent] == [latent.tolist(), None, None]


async def test_answers_behind_rows_alone_are_those_behind_a_whole_matrix(engine: VLLMEngine) -> None:
    """Prompts of several chunks, too; the rows are in the last one, in the first, or in two."""
    from vllm import SamplingParams
    from vllm.inputs import embeds_input

    params = SamplingParams(max_tokens=8, temperature=0.0, logprobs=0)
    tokens, latent = prompt(engine, LONG + "In the fog."), nudge(engine)
    for position in (engine.position(tokens), 1, 128 - 2):
        answers = []
        for whole in (False, True):
            salt = f"rows {position} {whole}"
            token = cache_salt.set(salt)
            given = engine.mixed_input(tokens, latent, position)
            cache_salt.reset(token)
            if whole:
                given = embeds_input(
                    given["prompt_embeds"][:].clone(),
                    cache_salt=salt,
                    prompt_token_ids=given["prompt_token_ids"],
                    is_token_ids=given["is_token_ids"],
                )
            (*_, last) = [output async for output in engine.llm.generate(given, params, salt)]
            answers.append(last.outputs[0])
        rows, matrix = answers
        assert rows.token_ids == matrix.token_ids
        assert rows.cumulative_logprob == matrix.cumulative_logprob


async def test_latents_with_a_row_of_zeros_are_refused(engine: VLLMEngine) -> None:
    latent = nudge(engine)
    latent[3] = 0
    with pytest.raises(LatentRejectedError, match="zeros"):
        await engine.generate([SteeredPrompt(prompt(engine, "Name three rivers."), latent)], Decoding(4))


async def test_what_nobody_waits_for_is_scheduled_behind_all_other(
    engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    add = engine.llm.add_request

    async def noting(*arguments: Any, **named: Any) -> Any:
        told.append(named.get("priority", 0))
        return await add(*arguments, **named)

    monkeypatch.setattr(engine.llm, "add_request", noting)
    asked = prompt(engine, "Name a river.")
    for background in (False, True):
        token = in_background.set(background)
        await engine.keys([asked])
        await engine.generate([SteeredPrompt(asked)], Decoding(2))
        in_background.reset(token)
    assert told == [0, 0, BEHIND, BEHIND]
    assert engine.llm.vllm_config.scheduler_config.policy == "priority"
