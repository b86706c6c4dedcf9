"""What rows of a prior are worth on one prompt: the day's share of the evidence.

Owns who votes on the label and who is graded by it. Knows nothing of standings, or of where outcomes are
kept.

A row and its baseline are graded by the consensus of plain samples and samples of the baseline that are not
graded themselves. Nothing of the row's own votes: one that collapsed onto a wrong answer would agree with
itself. A prompt that is held to choices is labelled and graded by their probabilities, as by night. Where a
verifier answers, its scores are the outcomes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from memory.prior import Row
from model.calibration import calibrated, choice_logits, label_of
from model.engine import Decoding, Engine, Generation, SteeredPrompt
from server.steering.active_prior import Comparison
from server.steering.people import Graded
from server.steering.prompt import RenderedPrompt
from server.steering.rewards.format import are_in_form
from server.steering.rewards.reward import Reward, SignalUnavailableError
from server.steering.search.consensus import counted, leading, said
from server.steering.search.session import ROLLOUT_TEMPERATURE

SAMPLES = 4
"""Sampled answers of a side that are graded, beside its greedy one; and those that vote."""

Side = str | None
"""A row by its id; None: no latent."""
Answers = Mapping[Side, Sequence[Generation]]


@dataclass(frozen=True)
class Measured:
    """What came of a measurement."""

    differences: Mapping[str, float]
    """Outcome with each row less outcome of its baseline, in [-1, 1], by the row's id; those left out where
    nothing tells right from wrong."""
    generated_tokens: int
    graded: Mapping[str, Graded] = field(default_factory=dict)
    """What the answers said that made them, by the row's id."""


async def measure(
    engine: Engine,
    verifier: Reward | None,
    prompt: RenderedPrompt,
    position: int,
    comparisons: Sequence[Comparison],
    given: Answers,
    *,
    max_tokens: int,
    seed: int,
) -> Measured:
    """Return what rows are worth on a prompt.

    Args:
        engine: Samples the answers.
        verifier: Grades them; None: labels do.
        prompt: What was asked.
        position: Where latents go in.
        comparisons: The rows, and what each is compared with.
        given: Answers of sides that there are already: the greedy one first, then sampled ones.
        max_tokens: Longest answer that the request could be given; longer ones are worth nothing.
        seed: Of the samples.

    Raises:
        EngineError: the engine failed.
    """
    chosen: dict[str, float] = {}
    said_of: dict[str, Graded] = {}
    if verifier is None and (choices := prompt.scored_choices):
        known = [one for one in comparisons if choices in one.row.leanings]
        chosen, said_of = await _by_choice(engine, prompt, position, choices, known)
        comparisons = [one for one in comparisons if one not in known]
        if not comparisons:
            return Measured(chosen, 0, said_of)
    answers, generated = await _sampled(engine, prompt, position, comparisons, given, max_tokens, seed)
    graded = {side: [sampled[0], *sampled[-SAMPLES:]] for side, sampled in answers.items()}
    votes = {side: sampled[1 : 1 + SAMPLES] for side, sampled in answers.items()}
    everything = [answer for side in graded.values() for answer in side]
    scores = await _verified(verifier, prompt, everything)
    fits = [
        kept and answer.finish_reason == "stop" and len(answer.token_ids) <= max_tokens
        for answer, kept in zip(everything, await are_in_form(prompt, everything), strict=True)
    ]
    finals = [said(prompt, answer) if fit else None for answer, fit in zip(everything, fits, strict=True)]
    final = {side: tuple(finals[at * (1 + SAMPLES) :][: 1 + SAMPLES]) for at, side in enumerate(graded)}
    differences = dict(chosen)
    for one in comparisons:
        baseline = one.baseline.id if one.baseline else None
        worth = scores
        if worth is None:
            label = _consensus(prompt, [*votes[None], *(votes[baseline] if baseline else ())])
            if label is None:
                continue
            worth = [float(said(prompt, answer) == label) for answer in everything]
        means = np.reshape(np.where(fits, worth, 0.0), (len(graded), 1 + SAMPLES)).mean(axis=1)
        outcome = dict(zip(graded, means.tolist(), strict=True))
        said_of[one.row.id] = Graded(final[one.row.id], final[baseline])
        differences[one.row.id] = outcome[one.row.id] - outcome[baseline]
    return Measured(differences, generated, said_of)


async def _by_choice(
    engine: Engine,
    prompt: RenderedPrompt,
    position: int,
    choices: tuple[str, ...],
    comparisons: Sequence[Comparison],
) -> tuple[dict[str, float], dict[str, Graded]]:
    """Return whether rows choose the likeliest of a prompt's `choices` more than their baselines do, and what
    both choose.

    As by night, the label is what the plain model thinks of the choices, less what it leans to: a vote would
    hold the lean for the truth. Nothing is returned of rows for which it is too unsure.
    """
    if not comparisons:
        return {}, {}
    rows = _rows(comparisons)
    sides: list[Side] = [None, *rows]
    prompts = [_prompt(prompt, position, None if side is None else rows[side]) for side in sides]
    logits = await choice_logits(engine, prompts, choices, held=True)  # (sides, choices), the plain one first
    chosen = dict(zip(sides, logits.argmax(axis=1).tolist(), strict=True))
    differences, graded = {}, {}
    for one in comparisons:
        probabilities = calibrated(logits[:1], np.array(one.row.leanings[choices]))[0]
        if label_of(engine, choices, probabilities) is None:
            continue
        right = int(probabilities.argmax())
        baseline = one.baseline.id if one.baseline else None
        differences[one.row.id] = float(chosen[one.row.id] == right) - float(chosen[baseline] == right)
        graded[one.row.id] = Graded((choices[chosen[one.row.id]],), (choices[chosen[baseline]],))
    return differences, graded


def _rows(comparisons: Sequence[Comparison]) -> dict[str, Row]:
    """Return the rows that are compared and those that they are compared with, by their ids."""
    return {row.id: row for one in comparisons for row in (one.row, one.baseline) if row is not None}


def _prompt(prompt: RenderedPrompt, position: int, row: Row | None) -> SteeredPrompt:
    if row is None:
        return SteeredPrompt(prompt.token_ids)
    latent = torch.from_numpy(np.array(row.latent, dtype=np.float32))
    return SteeredPrompt(prompt.token_ids, latent, position)


async def _sampled(
    engine: Engine,
    prompt: RenderedPrompt,
    position: int,
    comparisons: Sequence[Comparison],
    given: Answers,
    max_tokens: int,
    seed: int,
) -> tuple[dict[Side, list[Generation]], int]:
    """Return the answers of each side, and how many tokens were generated for those that were not given.

    The greedy one comes first; of sides that vote voters follow; as many that are graded come last.
    """
    greedy = replace(prompt.decoding, max_tokens=max_tokens, temperature=0.0, seed=None, logprobs=False)
    # Graded answers of all sides have the same seeds, but none that a vote has: the same luck would agree.
    voting, graded = [
        [
            replace(greedy, temperature=ROLLOUT_TEMPERATURE, seed=(seed + first + number) % 2**32)
            for number in range(SAMPLES)
        ]
        for first in (0, SAMPLES)
    ]
    rows = _rows(comparisons)
    baselines = {one.baseline.id for one in comparisons if one.baseline is not None}
    answers_of: dict[Side, list[Generation]] = {}
    prompts: list[SteeredPrompt] = []
    decodings: list[Decoding] = []
    asked: list[Side] = []
    for side in (None, *rows):
        steered = _prompt(prompt, position, None if side is None else rows[side])
        wanted = [greedy, *(voting if side is None or side in baselines else ()), *graded]
        answers_of[side] = list(given.get(side, ()))[: len(wanted)]
        for decoding in wanted[len(answers_of[side]) :]:
            prompts.append(steered)
            decodings.append(decoding)
            asked.append(side)
    answers = await engine.generate(prompts, decodings) if prompts else []
    for side, answer in zip(asked, answers, strict=True):
        answers_of[side].append(answer)
    return answers_of, sum(len(answer.token_ids) for answer in answers)


async def _verified(
    verifier: Reward | None, prompt: RenderedPrompt, answers: Sequence[Generation]
) -> list[float] | None:
    """Return the verifier's scores; None where it does not have one for each of the answers."""
    if verifier is None:
        return None
    try:
        scores = await verifier.score(prompt, answers, [])
    except SignalUnavailableError:
        return None
    known = [score for score in scores if score is not None]
    return known if len(known) == len(answers) else None


def _consensus(prompt: RenderedPrompt, voters: Sequence[Generation]) -> str | None:
    """Return the answer that most of those share who have one; None: no two agree, or others are as many."""
    first = leading(counted(prompt, voters))
    return next(iter(first)) if len(first) == 1 else None
