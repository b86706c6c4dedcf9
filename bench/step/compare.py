"""The three kinds of step, alternating on one model.

Owns the order of the measurements, the hook that keeps answers from ending, so that all are equally long,
and the summary. Knows nothing of what is shown.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from bench.statistics import ratio
from bench.step.latentseek import LatentSeek
from bench.step.searching import Step, prompt_of, search_step
from model.engine import PromptTooLongError
from model.transformers_engine import TransformersEngine
from server.steering.search.evolution import Evolution
from server.steering.search.gradient import Gradient

BASELINE = "latentseek"
METHODS = (BASELINE, "gradient", "evolution")
WARM_UP_TOKENS = 12
PUBLISHED_START = -0.5
"""A reward of LatentSeek's range [−1, 0]; what it is changes no cost."""


def compare(
    engine: TransformersEngine,
    question: str,
    answer_tokens: int,
    population: int,
    repetitions: int,
    progress: Callable[[str, int, int], None],
) -> dict[str, list[Step]]:
    """Return the steps of each method, one per repetition. The order turns from repetition to repetition.

    Raises:
        PromptTooLongError: the model's context is too short for such answers.
    """
    network = engine.model.network
    prompt = prompt_of(engine, question, answer_tokens)
    if len(prompt.token_ids) + engine.space.length + answer_tokens > engine.max_model_len:
        raise PromptTooLongError(f"{answer_tokens} answer tokens do not fit into {engine.max_model_len}")
    found: dict[str, list[Step]] = {name: [] for name in METHODS}
    with endless(network, engine.model.ends), asyncio.Runner() as runner:
        # The first step of each is another: torch imports and allocates.
        short = prompt_of(engine, question, WARM_UP_TOKENS)
        LatentSeek(network, short.token_ids, WARM_UP_TOKENS).step(PUBLISHED_START)
        for search in (Gradient(), Evolution()):
            runner.run(search_step(search, engine, short, population, 0))
        seeking = LatentSeek(network, prompt.token_ids, answer_tokens)

        def published(_seed: int) -> Step:
            begun = time.perf_counter()
            tokens = seeking.step(PUBLISHED_START)
            return Step(time.perf_counter() - begun, 1, len(tokens))

        steps: dict[str, Callable[[int], Step]] = {
            BASELINE: published,
            "gradient": lambda seed: runner.run(search_step(Gradient(), engine, prompt, population, seed)),
            "evolution": lambda seed: runner.run(search_step(Evolution(), engine, prompt, population, seed)),
        }
        for repetition in range(repetitions):
            turn = repetition % len(METHODS)
            for at, name in enumerate((*METHODS[turn:], *METHODS[:turn])):
                progress("steps", repetition * len(METHODS) + at, repetitions * len(METHODS))
                found[name].append(steps[name](repetition))
    return found


@contextmanager
def endless(network: Any, ends: Sequence[int]) -> Iterator[None]:
    """Give the tokens `ends` the lowest logit that `network` can express, for whoever uses its head."""
    tokens = torch.tensor(list(ends), device=network.device)

    def forbid(_module: Any, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, tokens, torch.finfo(logits.dtype).min)

    hook = network.get_output_embeddings().register_forward_hook(forbid)
    try:
        yield
    finally:
        hook.remove()


def summary(found: Mapping[str, Sequence[Step]]) -> dict[str, Any]:
    """Return seconds per step and per answer of each method, and how often faster than the published one.

    Raises:
        ValueError: answers were not equally long.
    """
    lengths = {step.tokens / step.answers for steps in found.values() for step in steps}
    if len(lengths) != 1:
        raise ValueError(f"answers of different lengths: {sorted(lengths)}")
    baseline = found[BASELINE]
    methods: dict[str, Any] = {}
    for name, steps in found.items():
        seconds = [step.seconds for step in steps]
        each = [step.seconds / step.answers for step in steps]
        methods[name] = {
            "answers_per_step": steps[0].answers,
            "tokens_per_step": steps[0].tokens,
            "seconds": seconds,
            "seconds_median": float(np.median(seconds)),
            "seconds_per_answer_median": float(np.median(each)),
        }
        if name != BASELINE:
            methods[name]["times_faster_per_step"] = ratio([step.seconds for step in baseline], seconds)
            methods[name]["times_faster_per_answer"] = ratio(
                [step.seconds / step.answers for step in baseline], each
            )
    return {"answer_tokens": int(lengths.pop()), "methods": methods}
