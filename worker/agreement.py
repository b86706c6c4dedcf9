"""How much decoded answers agree with the remembered ones.

Owns the night's live self-reward: word overlap with the best answer that was remembered. It says
nothing about right or wrong: remembered answers are the model's own.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memory.episode import Episode
from model.engine import Decoding, Engine, SteeredPrompt, UnsupportedError
from worker.bootstrap import grouped_means, interval
from worker.contestants import Latents

MAX_EPISODES = 32
"""Decoding is the slow part of a gate."""
MAX_TOKENS = 64
_SPARE_TOKENS = 8


@dataclass(frozen=True)
class Agreement:
    """Mean word overlap with the remembered answers, in [0, 1], and its paired difference."""

    n: int
    candidate: float
    none: float
    """Without latents."""
    difference: float
    low: float | None
    high: float | None


def word_overlap(answer: str, remembered: str) -> float:
    """Return the F1 of the two bags of words, case and punctuation left out; 1 when both are empty."""
    found, wanted = _words(answer), _words(remembered)
    if not found or not wanted:
        return float(found == wanted)
    common = (found & wanted).total()
    return 2 * common / (found.total() + wanted.total())


async def measure_agreement(
    engine: Engine, holdout: Sequence[Episode], groups: Sequence[int], latents: Latents, *, seed: int
) -> Agreement | None:
    """Decode hold-out prompts greedily with and without `latents` and compare with what was remembered.

    Answers that were one of a few choices are held to them here too.

    None when the engine does not generate.
    """
    episodes = list(holdout)[:MAX_EPISODES]
    longest = max(len(episode.answer_token_ids) for episode in episodes)
    tokens = min(MAX_TOKENS, longest + _SPARE_TOKENS)
    pairs = list(zip(episodes, latents, strict=False))
    asked = [(SteeredPrompt(e.prompt_token_ids), e) for e in episodes]
    plain = len(asked)
    asked += [(SteeredPrompt(e.prompt_token_ids, z), e) for e, z in pairs if z is not None]
    try:
        answers = await engine.generate(
            [prompt for prompt, _ in asked],
            [Decoding(max_tokens=tokens, choices=episode.choices or None) for _, episode in asked],
        )
    except UnsupportedError:
        return None
    texts = [generation.text for generation in answers]
    after = iter(texts[plain:])
    none, candidate = [], []
    for episode, latent, text in zip(episodes, latents, texts, strict=False):
        none.append(word_overlap(text, episode.answer_text))
        steered_text = text if latent is None else next(after)
        candidate.append(word_overlap(steered_text, episode.answer_text))
    kept = groups[: len(episodes)]
    before, with_latents = grouped_means(np.array(none), kept), grouped_means(np.array(candidate), kept)
    found = interval(with_latents - before, seed)
    return Agreement(
        n=len(episodes),
        candidate=float(with_latents.mean()),
        none=float(before.mean()),
        difference=found.mean,
        low=found.low if np.isfinite(found.low) else None,
        high=found.high if np.isfinite(found.high) else None,
    )


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.casefold()))
