"""Choices by a model's own probabilities, less what it leans to whatever the prompt.

Owns batch calibration (arXiv 2309.17249) and the labels that come of it, for night and day alike. Knows
nothing of clusters or of where leanings are kept.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from model.engine import Engine, Label, SteeredPrompt

LEAST_ABOVE_CHANCE = 0.15
"""What the likeliest choice of a label must have above 1 / choices: the others teach mostly noise."""
LEAST_PROBABILITY = 0.05
"""Choices that a label gives less are left out of it."""
_ROWS_PER_CALL = 64


async def choice_logits(
    engine: Engine, prompts: Sequence[SteeredPrompt], choices: tuple[str, ...], *, held: bool
) -> NDArray[np.float64]:
    """Return the log-probability of each choice, (n, choices), as of `Engine.choice_log_probabilities`.

    Raises:
        EngineError: the engine failed, or cannot tell.
    """
    step = max(1, _ROWS_PER_CALL // len(choices))
    logits = [
        await engine.choice_log_probabilities(prompts[start : start + step], choices, held=held)
        for start in range(0, len(prompts), step)
    ]
    return torch.cat(logits).double().numpy()


def leaning(
    logits: NDArray[np.float64], strength: float, frequencies: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return how much too likely each choice is, (choices,): λ (log mean p(choice) − log frequency).

    Args:
        logits: (n, choices) log-probabilities under no latent, of prompts of one kind.
        strength: λ in [0, 1].
        frequencies: (choices,) how often each is right, as far as is known; all equal: nothing is.
    """
    leant: NDArray[np.float64] = strength * (
        np.log(np.exp(logits).mean(axis=0) + 1e-12) - np.log(frequencies)
    )
    return leant


def calibrated(logits: NDArray[np.float64], leanings: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return probabilities of choices, (n, choices), from log-probabilities less the leanings, (choices,)."""
    moved = logits - leanings
    moved -= moved.max(axis=1, keepdims=True)
    probabilities: NDArray[np.float64] = np.exp(moved) / np.exp(moved).sum(axis=1, keepdims=True)
    return probabilities


def label_of(engine: Engine, choices: tuple[str, ...], probabilities: NDArray[np.float64]) -> Label | None:
    """Return the label of calibrated probabilities, (choices,), the likeliest first; None: too unsure."""
    if len(choices) > 1 and probabilities.max() < 1 / len(choices) + LEAST_ABOVE_CHANCE:
        return None
    order = [int(at) for at in np.argsort(-probabilities, kind="stable")]
    chosen = [at for at in order if probabilities[at] >= LEAST_PROBABILITY]
    total = float(probabilities[chosen].sum())
    return Label(
        tuple(engine.answer_tokens(choices[at]) for at in chosen),
        tuple(float(probabilities[at]) / total for at in chosen),
        choices,
    )


async def chosen_right(
    engine: Engine, prompts: Sequence[SteeredPrompt], labels: Sequence[Label]
) -> NDArray[np.float64]:
    """Return 1 where the likeliest of a label's choices is what a prompt is answered, (n,), else 0.

    Measured on 64 held-out headlines after 78 steps, it proves a gain of 13 points in 50 prompts; the
    probability of the label, which a gain moves by 1 point, would need hundreds (docs/log.md).

    Raises:
        EngineError: the engine failed, or cannot tell.
    """
    alike: dict[tuple[str, ...], list[int]] = {}
    for at, label in enumerate(labels):
        alike.setdefault(label.choices, []).append(at)
    right = np.zeros(len(labels))
    for choices, numbers in alike.items():
        logits = await choice_logits(engine, [prompts[at] for at in numbers], choices, held=True)
        tokens = [engine.answer_tokens(choice) for choice in choices]
        for at, likeliest in zip(numbers, logits.argmax(axis=1), strict=True):
            right[at] = float(tokens[int(likeliest)] == labels[at].answers[0])
    return right
