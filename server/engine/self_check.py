"""Whether our hooks into vLLM do what they claim, asked of the running engine at start-up.

Owns the checks and how they judge. All hooks use vLLM's internals, so a version that moved them must
be noticed before a steered answer is served. Knows nothing of what a failed check leads to.
"""

import logging
import uuid
from argparse import Namespace
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn.functional import cosine_similarity

from model.engine import Decoding, Label, SteeredPrompt, cache_salt
from model.placement import has_template
from server.engine.vllm import VLLMEngine

logger = logging.getLogger(__name__)

_MESSAGES = (
    "Name the four seasons of the year in order.",
    "A shop sells pencils at 3 for 40 cents. How much do 12 pencils cost? Explain each step briefly.",
    "Schreibe einen Satz über einen Fluss, der im Winter zufriert, und einen über das Meer.",
)
_ANSWER_TOKENS = 8
_LISTED = 5
"""Log-probabilities asked for at each token, where vLLM allows as many."""
_LEAST_COSINE = 0.999
_LEAST_AGREEMENT, _LEAST_AGREEMENT_16_BIT = 0.9, 0.65
"""Of slopes with finite differences. In 16 bits both are rounded: measured in bfloat16 0.78 to 0.91, and 0.20
to 0.48 for the gradient of another prompt (docs/log.md)."""
_STEPS = (1 / 150, 2 / 150, 3 / 150)
"""Lengths of the differences' steps, relative to the latent's norm. Several: rounding of each is another."""
_UNLIKELY = "Seven green lamps sing under the old bridge."
"""An answer that no model would give: its likelihood is steep, and stands out from what is rounded."""


@dataclass(frozen=True)
class CheckResult:
    """What one check found."""

    name: str
    ok: bool
    value: float | None
    """The number it judged by; None when it could not be measured."""
    detail: str


async def run_checks(engine: VLLMEngine, args: Namespace) -> list[CheckResult]:
    """Run every check; one that raises has failed.

    Args:
        engine: What is checked.
        args: What `vllm serve` has parsed.
    """
    return [
        await _run("chat-template", partial(_chat_template, args), engine),
        await _run("grammar", _grammar, engine),
        await _run("log-probabilities", _log_probabilities, engine),
        await _run("mixed-prompt", _mixed_prompt, engine),
        await _run("key", _key, engine),
        await _run("prefix-cache", _prefix_cache, engine),
        await _run("gradient", _gradient, engine),
    ]


async def _run(
    name: str, check: Callable[[VLLMEngine], Awaitable[tuple[bool, float | None, str]]], engine: VLLMEngine
) -> CheckResult:
    # Its own salt: with blocks of other passes in reach, passes would differ in shape and rounding.
    salt = cache_salt.set(uuid.uuid4().hex)
    try:
        result = CheckResult(name, *await check(engine))
    except Exception as error:
        logger.exception("self-check %s", name)
        result = CheckResult(name, False, None, f"{type(error).__name__}: {error}")
    finally:
        cache_salt.reset(salt)
    logger.log(logging.INFO if result.ok else logging.ERROR, "self-check %s: %s", name, result.detail)
    return result


async def _chat_template(args: Namespace, engine: VLLMEngine) -> tuple[bool, float | None, str]:
    """The model's own chat template: places, keys, memories and nights go by that."""
    if not has_template(engine.tokenizer):
        return False, None, "the model's folder has no chat template, so that latents have no place"
    others = {
        "--chat-template": args.chat_template,
        "--default-chat-template-kwargs": args.default_chat_template_kwargs,
    }
    used = [name for name, value in others.items() if value]
    if used:
        told = f"{', '.join(used)} of LATENTEVOLVE_VLLM_ARGS: memories would not tell templates apart"
        return False, None, f"{told}; put yours into the model's folder, as chat_template.jinja"
    return True, None, "the model's own"


async def _grammar(engine: VLLMEngine) -> tuple[bool, float | None, str]:
    """An answer that is held to choices. vLLM compiles all grammars by what the first one of a process needs.

    Were that a client's, its schema could decide that nobody's choices can be compiled.
    """
    choices = ("spring", "autumn")
    held = Decoding(max_tokens=2 * _ANSWER_TOKENS, choices=choices)
    (answer,) = await engine.generate([SteeredPrompt(_prompts(engine)[0])], held)
    return answer.text in choices, None, f"an answer held to {len(choices)} choices is {answer.text!r}"


async def _log_probabilities(engine: VLLMEngine) -> tuple[bool, float | None, str]:
    """Greedy tokens against the likeliest that are listed: vLLM ranks them by code that nothing else runs."""
    allowed = engine.llm.model_config.max_logprobs  # -1: the whole vocabulary
    asked = _LISTED if allowed < 0 else min(allowed, _LISTED)
    if asked == 0:  # steering asks for that of the sampled token alone
        return True, None, "skipped: `--max-logprobs 0` allows no list of likeliest tokens"
    first = total = 0
    for prompt in _prompts(engine):
        answer = await _plain_answer(engine, prompt, logprobs=asked)
        for token, listed in zip(answer.token_ids, answer.logprobs, strict=True):
            total += 1
            first += len(listed) >= asked and max(listed, key=lambda other: listed[other].logprob) == token
    share = first / total
    return share == 1, share, f"{first} of {total} tokens of greedy answers are the likeliest of {asked}"


async def _mixed_prompt(engine: VLLMEngine) -> tuple[bool, float | None, str]:
    """Greedy answers to a token prompt, to the same as our engine sends it, and with embeddings in it."""
    equal = total = 0
    for prompt in _prompts(engine):
        expected = (await _plain_answer(engine, prompt)).token_ids
        candidates = [SteeredPrompt(prompt)]
        place, length = engine.position(prompt), engine.space.length
        if place > length:
            latent = await engine.embed(prompt[place - length : place])
            shortened = (*prompt[: place - length], *prompt[place:])
            if bool(latent.any(dim=1).all()):  # some models have tokens of nothing but zeros
                candidates.append(SteeredPrompt(shortened, latent, place - length))
        for candidate in candidates:
            cache_salt.set(uuid.uuid4().hex)
            (answer,) = await engine.generate([candidate], Decoding(max_tokens=_ANSWER_TOKENS))
            equal += sum(a == b for a, b in zip(answer.token_ids, expected, strict=False))
            total += max(len(answer.token_ids), len(expected))
    share = equal / total
    return share == 1, share, f"{equal} of {total} tokens as from token prompts, greedy"


async def _plain_answer(
    engine: VLLMEngine, prompt: tuple[int, ...], logprobs: int | None = None, salt: str | None = None
) -> Any:
    """Return vLLM's own output for a token prompt, decoded greedily."""
    from vllm import SamplingParams
    from vllm.inputs import tokens_input

    params = SamplingParams(max_tokens=_ANSWER_TOKENS, temperature=0.0, logprobs=logprobs)
    plain = tokens_input(list(prompt), cache_salt=salt or uuid.uuid4().hex)
    async for output in engine.llm.generate(plain, params, f"check.{uuid.uuid4().hex}"):
        last = output
    return last.outputs[0]


async def _key(engine: VLLMEngine) -> tuple[bool, float | None, str]:
    """States of the key pass, several at once, against a reference forward."""
    prompts = _prompts(engine)
    states = await engine.raw_states(prompts)
    # The head that decodes must read from each state the token that its prompt really goes on with.
    named = await engine.next_tokens(states)
    answers = await engine.generate([SteeredPrompt(prompt) for prompt in prompts], Decoding(max_tokens=1))
    agree = sum(token == answer.token_ids[0] for token, answer in zip(named, answers, strict=True))
    judged = f"{agree} of {len(prompts)} states decode to the token generated next"
    if agree < len(prompts):
        return False, agree / len(prompts), judged
    if engine.gradient_worker is None:
        return (
            True,
            None,
            f"{judged}; no cosine: skipped, the gradient worker that would be the reference is off",
        )
    reference = await engine.gradient_worker.raw_states(prompts)
    least = float(cosine_similarity(states, reference).min())
    return least > _LEAST_COSINE, least, f"{judged}; cosine to the reference forward at least {least:.5f}"


async def _prefix_cache(engine: VLLMEngine) -> tuple[bool, float | None, str]:
    """Answers behind a latent whose prompt's blocks came of a token prompt, and of a mixed one."""
    prompt = engine.render([{"role": "user", "content": " ".join(_MESSAGES)}])
    steered = SteeredPrompt(prompt, engine.neutral_latent())
    how = Decoding(max_tokens=_ANSWER_TOKENS)
    await engine.generate([SteeredPrompt(prompt)], how)
    (expected,) = await engine.generate([steered], how)
    cache_salt.set(salt := uuid.uuid4().hex)
    await _plain_answer(engine, prompt, salt=salt)
    (answer,) = await engine.generate([steered], how)
    shared = max(output.num_cached_tokens or 0 for output in answer.native)
    equal = answer.token_ids == expected.token_ids
    said = "the same" if equal else "other"
    return (
        equal,
        float(shared),
        f"{shared} of {len(prompt)} tokens from a token prompt's cache, {said} answer",
    )


async def _gradient(engine: VLLMEngine) -> tuple[bool, float | None, str]:
    """The gradient's slope along parts of itself against differences of the log-likelihood."""
    if engine.gradient_worker is None:
        return True, None, "skipped: the gradient worker is off, and gradients are refused"
    prompts, latent = _prompts(engine), engine.neutral_latent()
    label = Label.of(engine.answer_tokens(_UNLIKELY))
    asked = [SteeredPrompt(prompt, latent) for prompt in prompts]
    gradients = (await engine.latent_gradient(asked, [label] * len(asked), [1.0] * len(asked))).gradient
    if not bool(torch.isfinite(gradients).all()) or not bool(gradients.any(dim=(1, 2)).all()):
        return False, None, "a gradient is zero or not finite"
    claimed, moved = [], []
    lengths = torch.tensor(_STEPS) * latent.norm()
    for prompt, gradient in zip(prompts, gradients, strict=True):
        for part in range(2):
            along = gradient * (torch.arange(len(latent)) % 2 == part).unsqueeze(1)  # (L, d)
            if not bool(along.any()):  # a latent of one row
                continue
            claimed.append(along.norm())
            ways = [sign * length * along / along.norm() for length in lengths for sign in (1, -1)]
            moved += [SteeredPrompt(prompt, latent + way) for way in ways]
    likelihoods = (await engine.log_likelihood(moved, [label] * len(moved))).view(len(claimed), -1, 2)
    rises = (likelihoods[..., 0] - likelihoods[..., 1]) / 2  # (directions, steps)
    measured = (rises * lengths).sum(dim=1) / lengths.square().sum()  # least squares through 0
    slopes = torch.stack(claimed)
    agreement = float(1 - (measured - slopes).norm() / slopes.norm())
    exact = engine.llm.model_config.dtype == torch.float32
    return (
        agreement > (_LEAST_AGREEMENT if exact else _LEAST_AGREEMENT_16_BIT),
        agreement,
        f"slopes agree with finite differences to {agreement:.3f} (1 is exact)",
    )


def _prompts(engine: VLLMEngine) -> list[tuple[int, ...]]:
    return [engine.render([{"role": "user", "content": message}]) for message in _MESSAGES]
