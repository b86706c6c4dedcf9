"""How much decoded answers agree with the remembered ones.

Owns the night's live self-reward: whether an answer says in the end what the best remembered one
says. It tells nothing of right or wrong: remembered answers are the model's own.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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
FEWEST_ANSWERS = 64
"""Of each contestant: hold-outs are smaller, so answers are sampled beside the greedy ones (ADR 0022)."""
MOST_EACH = 8
"""Answers to one prompt, the greedy one among them."""
TEMPERATURE = 1.0
_SPARE_TOKENS = 8
_EPISODES_PER_CALL = 4


@dataclass(frozen=True, eq=False)
class Agreement:
    """Of one contestant's answers with the remembered ones, per episode."""

    greedy: NDArray[np.float64]
    """(n,) in [0, 1]."""
    sampled: NDArray[np.float64]
    """(n,) mean over the greedy answer and the sampled ones."""


def agreement(answer: Generation, remembered: Episode) -> float:
    """Return 1 for an answer with the final answer of the remembered one, boxed where that is boxed, else 0.

    One that was cut off agrees with nothing. Choices are compared as they stand. Where the remembered answer
    says nothing to compare, such as a long free text, it is word overlap in [0, 1], cut off or not.
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
) -> Mapping[str, Agreement] | None:
    """Decode hold-out prompts under each contestant's latents and compare with what was remembered.

    Each prompt once greedily and some times by sampling, with the same seeds for all contestants, so that
    there are `FEWEST_ANSWERS`, at most `MOST_EACH` to a prompt. Answers that were one of a few choices are
    held to them here too, and have the tokens that were allowed.

    Returns:
        Per contestant, for the first `MAX_EPISODES` of the hold-out; None when the engine does not generate.
    """
    episodes = list(holdout)[:MAX_EPISODES]
    each = min(-(-FEWEST_ANSWERS // len(episodes)), MOST_EACH)
    found = {name: np.zeros((len(episodes), each)) for name in latents}
    for start in range(0, len(episodes), _EPISODES_PER_CALL):
        progress(start, len(episodes), "answers of candidate and controls")
        rows = [
            (name, index, latents[name][index])
            for index in range(start, min(start + _EPISODES_PER_CALL, len(episodes)))
            for name in latents
        ]
        try:
            answers = await _decoded(engine, episodes, rows, each)
        except UnsupportedError:
            return None
        for (name, index, _), given in zip(rows, answers, strict=True):
            found[name][index] = [agreement(answer, episodes[index]) for answer in given]
    progress(len(episodes), len(episodes), "answers of candidate and controls")
    return {name: Agreement(values[:, 0], values.mean(axis=1)) for name, values in found.items()}


async def greedy_agreement(
    engine: Engine, episodes: Sequence[Episode], latents: Sequence[torch.Tensor]
) -> NDArray[np.float64] | None:
    """Return how much the greedy answer under each latent, (L, d), agrees with the remembered one, (n,).

    None when the engine does not generate.
    """
    rows = [("", index, latent) for index, latent in enumerate(latents)]
    try:
        answers = await _decoded(engine, episodes, rows, each=1)
    except UnsupportedError:
        return None
    return np.array([agreement(given, e) for (given,), e in zip(answers, episodes, strict=True)])


async def _decoded(
    engine: Engine,
    episodes: Sequence[Episode],
    rows: Sequence[tuple[str, int, torch.Tensor | None]],
    each: int,
) -> list[list[Generation]]:
    """Return `each` answers per row, the greedy one first; without a latent an episode is asked only once."""
    asked = {(index, name if latent is not None else "none"): latent for name, index, latent in rows}
    generations = await engine.generate(
        [
            SteeredPrompt(episodes[index].prompt_token_ids, latent)
            for (index, _), latent in asked.items()
            for _ in range(each)
        ],
        [_decoding(episodes[index], index, draw) for index, _ in asked for draw in range(each)],
    )
    given = {at: generations[place * each : (place + 1) * each] for place, at in enumerate(asked)}
    return [given[index, name if latent is not None else "none"] for name, index, latent in rows]


def _decoding(episode: Episode, index: int, draw: int) -> Decoding:
    return Decoding(
        max_tokens=_room(episode),
        temperature=TEMPERATURE if draw else 0.0,
        seed=MOST_EACH * index + draw if draw else None,
        choices=episode.choices or None,
    )


def _room(episode: Episode) -> int:
    """Tokens of an answer: what was allowed, and where that is not known or large, enough for a like one."""
    alike = len(episode.answer_token_ids) + _SPARE_TOKENS
    return alike if episode.max_tokens is None else min(episode.max_tokens, max(MAX_TOKENS, alike))


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.casefold()))
