"""What answers under latents are worth.

Owns the outcome of an answer to an example of the night, and how two ways of answering differ in it. Knows
nothing of training or of what is decided.

An outcome is in [0, 1]. Of a prompt that is held to choices it is 1 where the model chooses the likeliest
answer of the label, else 0. Of a free prompt it is how much the greedy answer and a few samples agree with
the label.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from model.calibration import chosen_right
from model.engine import Decoding, Engine, Generation, SteeredPrompt
from model.final_answer import boxed, final_answer
from worker.dataset import Example

MAX_TOKENS = 256
"""Longest answer decoded, unless the label is longer."""
TEMPERATURE = 1.0
_SPARE_TOKENS = 8
_ROWS_PER_CALL = 64


async def outcomes(
    engine: Engine,
    examples: Sequence[Example],
    latents: Sequence[torch.Tensor | None],
    *,
    samples: int = 0,
) -> NDArray[np.float64]:
    """Return the outcome of each example, (n,) in [0, 1].

    Args:
        engine: the model.
        examples: n of them.
        latents: (L, d) of each, or None for the plain prompt.
        samples: answers to a free prompt that are sampled beside the greedy one, with the same seeds whatever
            the latent.

    Raises:
        EngineError: the engine failed.
    """
    values = np.zeros(len(examples))
    held = [at for at, example in enumerate(examples) if example.choices]
    free = [at for at, example in enumerate(examples) if not example.choices]
    if held:
        values[held] = await chosen_right(
            engine,
            [SteeredPrompt(examples[at].prompt, latents[at]) for at in held],
            [examples[at].label for at in held],
        )
    each = samples + 1
    per_call = max(1, _ROWS_PER_CALL // each)
    for start in range(0, len(free), per_call):
        some = free[start : start + per_call]
        answers = await engine.generate(
            [SteeredPrompt(examples[at].prompt, latents[at]) for at in some for _ in range(each)],
            [_decoding(examples[at], at, draw, each) for at in some for draw in range(each)],
        )
        for place, at in enumerate(some):
            given = answers[place * each : (place + 1) * each]
            values[at] = np.mean([agreement(answer, examples[at]) for answer in given])
    return values


def agreement(answer: Generation, example: Example) -> float:
    """Return 1 for an answer with the final answer of the label, boxed where that is boxed, else 0.

    One that was cut off agrees with nothing. Where the label says nothing to compare, such as a long free
    text, it is word overlap in [0, 1], cut off or not.
    """
    wanted = final_answer(example.answer)
    if wanted is None:
        return word_overlap(answer.text, example.answer)
    ended = answer.finish_reason != "length"
    in_form = boxed(answer.text) is not None or boxed(example.answer) is None
    return float(ended and in_form and final_answer(answer.text) == wanted)


def word_overlap(answer: str, remembered: str) -> float:
    """Return the F1 of the two bags of words, case and punctuation left out; without words, equality."""
    said, wanted = _words(answer), _words(remembered)
    if not said or not wanted:
        return float(answer.strip() == remembered.strip())
    common = (said & wanted).total()
    return 2 * common / (said.total() + wanted.total())


def same_norms(latent: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return random directions with the norms of `latent`'s rows, (L, d)."""
    drawn = torch.randn(latent.shape, generator=generator)
    scaled: torch.Tensor = drawn / drawn.norm(dim=1, keepdim=True) * latent.norm(dim=1, keepdim=True)
    return scaled


def by_group(examples: Sequence[Example], values: Sequence[float]) -> list[tuple[str, float]]:
    """Return the mean value of each duplicate group under the digest of its first prompt, in order."""
    groups: dict[int, list[float]] = {}
    named: dict[int, str] = {}
    for example, value in zip(examples, values, strict=True):
        named.setdefault(example.group, example.digest)
        groups.setdefault(example.group, []).append(float(value))
    return [(named[group], float(np.mean(values))) for group, values in groups.items()]


def _decoding(example: Example, number: int, draw: int, each: int) -> Decoding:
    alike = max(map(len, example.label.answers)) + _SPARE_TOKENS
    allowed = alike if example.max_tokens is None else min(example.max_tokens, max(MAX_TOKENS, alike))
    return Decoding(
        max_tokens=allowed,
        temperature=TEMPERATURE if draw else 0.0,
        seed=each * number + draw if draw else None,
    )


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.casefold()))
