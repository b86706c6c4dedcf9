"""How much decoded answers agree with the remembered ones.

Owns the night's live self-reward: whether a greedy answer says in the end what the best remembered one
says. It tells nothing of right or wrong: remembered answers are the model's own.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from memory.episode import Episode
from model.engine import Decoding, Engine, Generation, SteeredPrompt, UnsupportedError
from model.final_answer import boxed, final_answer
from worker.contestants import Latents

MAX_EPISODES = 32
"""Decoding is the slow part of a gate."""
MAX_TOKENS = 256
"""Longest answer decoded, unless the remembered one is longer."""
_SPARE_TOKENS = 8
_EPISODES_PER_CALL = 4


def agreement(answer: Generation, remembered: Episode) -> float:
    """Return 1 for an answer with the final answer of the remembered one, boxed where that is boxed, else 0.

    One that was cut off agrees with nothing. Choices are compared as they stand. Where the remembered answer
    says nothing to compare, such as a long free text, it is word overlap in [0, 1].
    """
    text = remembered.answer_text
    if text in remembered.choices:
        return float(answer.text == text)
    wanted = final_answer(text)
    if wanted is None:
        return word_overlap(answer.text, text)
    ended = answer.finish_reason != "length"
    in_form = boxed(answer.text) is not None or boxed(text) is None
    return float(ended and in_form and final_answer(answer.text) == wanted)


def word_overlap(answer: str, remembered: str) -> float:
    """Return the F1 of the two bags of words, case and punctuation left out; without words, equality."""
    found, wanted = _words(answer), _words(remembered)
    if not found or not wanted:
        return float(answer.strip() == remembered.strip())
    common = (found & wanted).total()
    return 2 * common / (found.total() + wanted.total())


async def agreements(
    engine: Engine,
    holdout: Sequence[Episode],
    latents: Mapping[str, Latents],
    progress: Callable[[int, int, str], None] = lambda done, total, message: None,
) -> Mapping[str, NDArray[np.float64]] | None:
    """Decode hold-out prompts greedily under each contestant's latents and compare with what was remembered.

    Answers that were one of a few choices are held to them here too, and have the tokens that were allowed.

    Returns:
        Per contestant, (n,) for the first `MAX_EPISODES` of the hold-out; None when the engine does not
        generate.
    """
    episodes = list(holdout)[:MAX_EPISODES]
    found = {name: np.zeros(len(episodes)) for name in latents}
    for start in range(0, len(episodes), _EPISODES_PER_CALL):
        progress(start, len(episodes), "answers of candidate and controls")
        rows = [
            (name, index, latents[name][index])
            for index in range(start, min(start + _EPISODES_PER_CALL, len(episodes)))
            for name in latents
        ]
        try:
            answers = await _decoded(engine, episodes, rows)
        except UnsupportedError:
            return None
        for (name, index, _), answer in zip(rows, answers, strict=True):
            found[name][index] = agreement(answer, episodes[index])
    progress(len(episodes), len(episodes), "answers of candidate and controls")
    return found


async def _decoded(
    engine: Engine, episodes: Sequence[Episode], rows: Sequence[tuple[str, int, torch.Tensor | None]]
) -> list[Generation]:
    """Return one answer per row; those without a latent are decoded once per episode."""
    asked = {(index, name if latent is not None else "none"): latent for name, index, latent in rows}
    generations = await engine.generate(
        [SteeredPrompt(episodes[index].prompt_token_ids, latent) for (index, _), latent in asked.items()],
        [
            Decoding(max_tokens=_room(episodes[index]), choices=episodes[index].choices or None)
            for index, _ in asked
        ],
    )
    answers = dict(zip(asked, generations, strict=True))
    return [answers[index, name if latent is not None else "none"] for name, index, latent in rows]


def _room(episode: Episode) -> int:
    """Tokens of an answer: what was allowed, and where that is not known or large, enough for a like one."""
    alike = len(episode.answer_token_ids) + _SPARE_TOKENS
    return alike if episode.max_tokens is None else min(episode.max_tokens, max(MAX_TOKENS, alike))


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.casefold()))
