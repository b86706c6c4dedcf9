"""Answering by the probabilities of a request's choices, less what the model leans to (arXiv 2309.17249).

Owns which requests are known to lean the same way, and the answer that comes of it. Knows nothing of where
they are remembered.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model.calibration import calibrated, choice_logits, leaning
from model.engine import Engine, Generation, SteeredPrompt
from server.steering.prompt import RenderedPrompt

LOOKED_AT = 64
"""Most requests of the same cluster that are looked at: they are taken to lean the same way."""
UNKNOWN = 16
"""Requests without a lean that count beside the known ones: a few may all be right about the same choice."""
MOST_PASSES = 128
"""Tokens of all choices; where they are more, choices are scored by what a grammar would draw, in fewer
passes."""


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


async def choose(
    engine: Engine,
    prompt: RenderedPrompt,
    steered: SteeredPrompt,
    known: Sequence[Sequence[float]],
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
        known: Log-probabilities of the same choices under no latent, of requests like it.
        strength: λ of the calibration.
        remembered: Whether what the model thinks by itself is asked for behind a latent, too.

    Raises:
        EngineError: the engine failed.
    """
    choices = prompt.scored_choices
    own = None
    if steered.latent is None or remembered:
        passes = sum(len(engine.answer_tokens(choice)) for choice in choices)
        plain = SteeredPrompt(prompt.token_ids)
        own = await choice_logits(engine, [plain], choices, held=passes > MOST_PASSES)
    if steered.latent is None:
        assert own is not None
        decisive = calibrated(own, _leaning(own, known, strength))[0]
    else:  # as the night has taught it, and measured
        decisive = np.exp(await choice_logits(engine, [steered], choices, held=True))[0]
    chosen = int(decisive.argmax())
    by_itself = chosen if own is None else int(own[0].argmax())
    return Choice(
        choices[chosen],
        float(decisive[chosen]),
        float(decisive[by_itself]),
        () if own is None else tuple(own[0].tolist()),
    )


def _leaning(
    own: NDArray[np.float64], known: Sequence[Sequence[float]], strength: float
) -> NDArray[np.float64]:
    """Return what the model leans to, (choices,), from a request, (1, choices), and those like it."""
    count = own.shape[1]
    rows = [own, np.full((UNKNOWN, count), -np.log(count))]
    if known:
        rows.append(np.asarray(known, dtype=np.float64))
    return leaning(np.concatenate(rows), strength, np.full(count, 1 / count))


async def say(engine: Engine, prompt: RenderedPrompt, steered: SteeredPrompt, text: str) -> Generation:
    """Return the answer that says a choice, as the engine decodes it.

    Raises:
        EngineError: the engine failed.
    """
    how = replace(prompt.decoding, temperature=0.0, seed=None, choices=(text,), logprobs=True)
    (answer,) = await engine.generate([steered], how)
    return answer
