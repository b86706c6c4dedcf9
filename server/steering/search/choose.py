"""Answering by the probabilities of a request's choices, less what the model leans to (arXiv 2309.17249).

Owns which requests are known to lean the same way, and the answer that comes of it. Knows nothing of where
they are remembered.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.calibration import calibrated, choice_logits, leaning
from model.engine import Engine, Generation, SteeredPrompt
from server.steering.prompt import RenderedPrompt

LOOKED_AT = 64
"""Most requests of the same cluster that are looked at: they are taken to lean the same way."""
UNKNOWN = 8
"""Requests without a lean that count beside the known ones: a few may all be right about the same choice."""
EVEN = 40
"""Requests beside the known ones to which each choice is right as often as any other."""
MOST_STEPS, NEAR = 100, 0.001
"""How long a lean is looked for, and how near in log-probability is near enough."""
MOST_PASSES = 128
"""Tokens of all choices; where they are more, choices are scored by what a grammar would draw alone, in fewer
passes."""


class Thought(NamedTuple):
    """What the model thinks of a request's choices under no latent: two readings, which err differently."""

    whole: Sequence[float]
    """Log-probability of each as a whole answer."""
    held: Sequence[float] = ()
    """Log-probability of each as a grammar draws it; (): there is one reading only."""


@dataclass(frozen=True, eq=False)
class Choice:
    """What a request was answered."""

    text: str
    probability: float
    """Of this choice, calibrated."""
    plain_probability: float
    """Calibrated, of the one that the model would have chosen by itself."""
    log_probabilities: tuple[float, ...]
    """Of each choice, under no latent and not calibrated; (): not asked for."""
    held_log_probabilities: tuple[float, ...]
    """The same, as a grammar draws them."""


async def choose(
    engine: Engine,
    prompt: RenderedPrompt,
    steered: SteeredPrompt,
    known: Sequence[Thought],
    strength: float,
    *,
    remembered: bool,
) -> Choice:
    """Return the likeliest of the prompt's choices.

    Behind a latent that is the likeliest that a grammar would draw, for so the night has taught it.

    Args:
        engine: Scores them.
        prompt: What was asked.
        steered: The same, with the latent that serves it, if one does.
        known: What the model thought of the same choices in requests like it.
        strength: λ of the calibration.
        remembered: Whether what the model thinks by itself is asked for behind a latent, too.

    Raises:
        EngineError: the engine failed.
    """
    choices = prompt.scored_choices
    own = None
    if steered.latent is None or remembered:
        own = await _thought(engine, SteeredPrompt(prompt.token_ids), choices)
    if steered.latent is None:
        assert own is not None
        decisive = calibrated(np.array([own.whole]), _leaning([own, *known], strength))[0]
    else:  # as the night has taught it, and measured
        decisive = np.exp(await choice_logits(engine, [steered], choices, held=True))[0]
    chosen = int(decisive.argmax())
    by_itself = chosen if own is None else int(np.argmax(own.whole))
    return Choice(
        choices[chosen],
        float(decisive[chosen]),
        float(decisive[by_itself]),
        () if own is None else tuple(own.whole),
        () if own is None else tuple(own.held),
    )


async def _thought(engine: Engine, plain: SteeredPrompt, choices: tuple[str, ...]) -> Thought:
    if sum(len(engine.answer_tokens(choice)) for choice in choices) > MOST_PASSES:
        return Thought((await choice_logits(engine, [plain], choices, held=True))[0].tolist())
    try:
        async with asyncio.TaskGroup() as readings:  # one batch of the engine's
            whole, held = (
                readings.create_task(choice_logits(engine, [plain], choices, held=held))
                for held in (False, True)
            )
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    return Thought(whole.result()[0].tolist(), held.result()[0].tolist())


def _leaning(thoughts: Sequence[Thought], strength: float) -> NDArray[np.float64]:
    """Return what the model leans to, (choices,), from a request and those like it.

    How often each choice is right is read off the requests of which both readings say the same once each has
    lost its own lean: the readings lean differently, so that where they agree they are mostly right
    (docs/log.md). Requests with one reading tell of the lean only.
    """
    whole = np.array([thought.whole for thought in thoughts])  # (n, choices)
    even = np.full(whole.shape[1], 1 / whole.shape[1])
    frequencies, twice = even, [thought for thought in thoughts if len(thought.held)]
    if twice:
        said = [
            calibrated(reading, _leans(reading, strength, even)).argmax(axis=1)
            for reading in (np.array([one.whole for one in twice]), np.array([one.held for one in twice]))
        ]
        agreed = np.bincount(said[0][said[0] == said[1]], minlength=len(even)) + EVEN * even
        frequencies = agreed / agreed.sum()
    return _leans(whole, strength, frequencies)


def _leans(
    reading: NDArray[np.float64], strength: float, frequencies: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return λ times the lean that leaves the choices as likely, on the mean, as they are frequent.

    The mean probabilities are the first step towards it. Beside requests of no lean they show no more of one
    than so few can hide, and of a model that nearly always says the same that is not enough (docs/log.md).
    """
    none = np.full((UNKNOWN, reading.shape[1]), -np.log(reading.shape[1]))
    requests = np.concatenate([reading, none])
    leans = np.zeros(reading.shape[1])
    for _ in range(MOST_STEPS):
        left = requests - leans
        step = leaning(left - np.logaddexp.reduce(left, axis=1, keepdims=True), 1.0, frequencies)
        leans += step
        if np.abs(step).max() < NEAR:
            break
    return strength * leans


async def say(engine: Engine, prompt: RenderedPrompt, steered: SteeredPrompt, text: str) -> Generation:
    """Return the answer that says a choice, as the engine decodes it.

    Raises:
        EngineError: the engine failed.
    """
    how = replace(prompt.decoding, temperature=0.0, seed=None, choices=(text,), logprobs=True)
    (answer,) = await engine.generate([steered], how)
    return answer
