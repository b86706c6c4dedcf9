"""Asking the bare model the questions of a benchmark.

Owns how a question becomes the prompt that the gateway would see, how samples are drawn, and which have a
vote in a majority. Knows nothing of labels or of what samples are for.
"""

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cli.demonstration.stream import Item
from model.engine import Decoding, Engine, Generation, SteeredPrompt
from server.steering.prompt import RenderedPrompt
from server.steering.rewards.format import in_form
from server.steering.rewards.scorer import Scorer
from server.steering.search.consensus import said

if TYPE_CHECKING:  # questions are asked on machines with torch and little else (`scripts/gpu.py`)
    from config.settings import Settings


def render(engine: Engine, item: Item, *, instruction: str, system: str, max_tokens: int) -> RenderedPrompt:
    """Return a question as the gateway would see it.

    Args:
        engine: Whose chat template it is.
        item: The question; its answer is not read.
        instruction: Follows the question; empty: none.
        system: System prompt; empty: the chat template's own.
        max_tokens: Answer budget.
    """
    question = item.asked(instruction)
    messages = [{"role": "system", "content": system}] if system else []
    tokens = engine.render([*messages, {"role": "user", "content": question}])
    choices = tuple(sorted(set(item.choices)))  # as the gateway reads them
    decoding = Decoding(max_tokens=max_tokens, choices=choices or None)
    rules: dict[str, Any] = {"boxed": True} if "\\boxed" in system + question else {}
    return RenderedPrompt(tokens, engine.decode(tokens), question, decoding, rules, scored_choices=choices)


def seed_of(prompt: RenderedPrompt, seed: int) -> int:
    """Return a seed that a question has in every batch, and shares with no other but by chance."""
    return zlib.crc32(f"{seed} {prompt.token_ids}".encode())


def first_seed(seed: int, number: int) -> int:
    """Return the seed of a question's first sample; up to 1,009 samples share none with the next question."""
    return seed * 1_000_003 + number * 1_009


def vote(prompt: RenderedPrompt, answer: Generation) -> str | None:
    """Return what an answer gives its vote to; None: it was cut off, is not in form, or says nothing."""
    return said(prompt, answer) if in_form(prompt, answer) else None


def elected(votes: Sequence[str | None]) -> int | None:
    """Return the number of the first vote for what most voted for; None without any vote."""
    counted = Counter(said for said in votes if said is not None)
    return votes.index(counted.most_common(1)[0][0]) if counted else None


def scorer_of(settings: "Settings") -> Scorer:
    """Return the server's own reward; what it counts is kept nowhere.

    Raises:
        RewardSettingsError: the settings name none.
    """
    from prometheus_client import CollectorRegistry

    from server.steering.metrics import Metrics
    from server.steering.rewards.verifier import Verifier

    return Scorer.of(settings.rewards, Verifier.of(settings, Metrics(CollectorRegistry())))


async def samples(
    engine: Engine, prompts: Sequence[RenderedPrompt], count: int, first_seeds: Sequence[int]
) -> list[list[Generation]]:
    """Return `count` unsteered samples per prompt at temperature 1, decoded as one batch.

    Args:
        engine: The model.
        prompts: What is asked.
        count: Samples of each.
        first_seeds: One per prompt; further samples of it count on from there.

    Raises:
        EngineError: the engine failed.
    """
    asked, decodings = [], []
    for prompt, first in zip(prompts, first_seeds, strict=True):
        for sample in range(count):
            asked.append(SteeredPrompt(prompt.token_ids))
            seed = (first + sample) % 2**32
            decodings.append(replace(prompt.decoding, temperature=1.0, seed=seed, logprobs=True))
    answers = await engine.generate(asked, decodings)
    return [answers[start : start + count] for start in range(0, len(answers), count)]
