"""The gate: whether a trained prior deserves to serve.

Owns the measurement on the hold-out and the rule of the decision. Knows nothing of training, and
publishes nothing.

The rule, made for hold-outs of a few dozen episodes or fewer, on those inside the candidate's region of
competence, for outside it says nothing:

1. Decoded greedily, under the same choices and to the same length (a schema, a pattern or stop words of the
   request are not kept with an episode and do not hold here), the candidate's answers agree on
   average no less with the remembered ones than any control's. Likelihood alone can be won by the form of
   an answer while its content gets worse.
2. The candidate is better than every control, in that agreement or in replay likelihood. Against no latent
   the 95 % interval of the difference is above zero: that steering does good at all needs proof, and answers
   that agree more on average, for surer ones that say the same gain nobody anything. Against the others an
   average above zero in one of the two is enough: kNN-only, the mean and the random latent show that what was
   learned matters, not only that something is injected. One that began anew while a prior is active must
   exclude zero there too.
3. Less is asked of a candidate that went on from the active prior, beside that prior and beside kNN-only and
   the mean latent, which are mostly made of the latents that it served. It has learned from all that the
   other one has and from more, so where nothing tells them apart it is the better guess: beside the active
   prior its answers agree no less on average, beside the other two they are not proven to, and nowhere does
   an interval lie below zero (ADR 0012, 0018); or it is better on average in one of the two, as beside the
   random latent. One that is the active prior over again is refused where that one speaks.
4. At least five neighbourhoods judged. With fewer, intervals promise too much.

Sampled answers prove what greedy ones are too few for: their agreement has an interval of its own, which
proves good and harm like the others. Whose answers agree more is for the greedy ones to say: samples agree
more by being surer, too (ADR 0022).

An engine that does not generate leaves likelihood alone to judge by.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from memory.episode import Episode
from memory.prior import Prior
from model.engine import Engine
from worker.agreement import Agreement, agreements
from worker.bootstrap import Interval, grouped_means, interval
from worker.contestants import Candidate, Latents, Recall, contestants
from worker.replay import likelihoods
from worker.split import MIN_HOLDOUT, Split

CONTROLS: Mapping[str, str] = {
    "none": "no latent",
    "knn": "recall alone",
    "mean": "the mean latent",
    "random": "a random latent of the same norms",
    "active": "the active prior",
}
_ABSENT = {"active": "no prior is active yet", "mean": "no latent has earned its place yet"}

TIE = 1e-3
"""Smaller differences are rounding: the same latent in another batch gives another last digit."""

MAX_HOLDOUT = 96
"""Most episodes that judge."""

_EPISODES_PER_CALL = 4

Scores = NDArray[np.float64]

Demand = Literal["proven by answers", "proven", "better", "no worse", "not proven worse"]
"""What a candidate must be beside a control, by rules 1 and 2 or 3 of this module."""


def demands(goes_on: bool) -> Mapping[str, Demand]:
    """Return what is asked beside each control, by whether the candidate went on from the active prior."""
    if goes_on:
        return {
            "none": "proven by answers",
            "knn": "not proven worse",
            "mean": "not proven worse",
            "random": "better",
            "active": "no worse",
        }
    return {
        "none": "proven by answers",
        "knn": "better",
        "mean": "better",
        "random": "better",
        "active": "proven",
    }


@dataclass(frozen=True)
class Answers:
    """Mean agreement of decoded answers with the remembered ones, in [0, 1] (`worker/agreement.py`)."""

    n: int
    """Episodes that were decoded."""
    candidate: float
    mean: float
    """Of the control."""
    difference: float
    low: float | None
    high: float | None

    @property
    def better(self) -> bool:
        """Whether the candidate's answers agree more than the control's, by more than rounding."""
        return self.difference > TIE

    @property
    def worse(self) -> bool:
        """Whether the candidate's answers agree less than the control's, by more than rounding."""
        return self.difference < -TIE


@dataclass(frozen=True)
class Comparison:
    """The candidate against one control, in mean replay likelihood (`worker/replay.py`) and in answers."""

    control: str
    candidate: float
    mean: float | None
    """Of the control; None: there is no such control this time, and `note` says why."""
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    answers: Answers | None = None
    """Greedy ones. None: there is no such control, or the engine does not generate."""
    samples: Answers | None = None
    """The same of greedy and sampled answers together."""
    win: bool | None = None
    """Whether the candidate is what is asked of it beside this control."""
    note: str = ""


@dataclass(frozen=True)
class GateReport:
    """What the gate measured and decided; goes into the manifest and the night's record."""

    promoted: bool
    reason: str
    n: int
    """Hold-out episodes that it was judged by: those inside its region of competence."""
    neighbourhoods: int
    """Independent observations: near-twins are one."""
    unseen: bool
    """Whether the hold-out holds no prompt that the active prior was trained on."""
    controls: tuple[Comparison, ...]
    latent_error: Mapping[str, float]
    """Mean squared error to the latents that earned their place: of candidate, neutral start and mean."""
    coverage: float
    """Share of the hold-out inside the candidate's region of competence."""
    threshold: float
    """Cosine to the nearest centroid where that region ends; of several kinds the least."""
    kinds: tuple["GateReport", ...] = ()
    """Of several kinds of task one report each (`worker/verdict.py`); then `controls` is empty."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {"decision": "promoted" if self.promoted else "refused", **asdict(self)}


async def judge(
    engine: Engine,
    candidate: Candidate,
    active: Prior | None,
    sides: Split,
    *,
    recall: Recall,
    seed: int,
    goes_on: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, message: None,
) -> GateReport:
    """Compare `candidate` with its controls on the hold-out of `sides` and decide.

    `goes_on`: whether the candidate's training began with the active prior's weights.

    Raises:
        EngineError: the engine failed.
    """
    holdout, groups, covered = _judging(candidate, sides)
    neutral = engine.neutral_latent()
    latents = contestants(candidate, active, sides.train, holdout, neutral=neutral, recall=recall, seed=seed)
    proposed = latents["candidate"]
    finite = all(z is not None and bool(torch.isfinite(z).all()) for z in proposed)
    comparisons: list[Comparison] = []
    if finite:
        scores = await _scores(engine, holdout, latents, progress)
        finite = all(bool(np.isfinite(values).all()) for values in scores.values())
    if finite:
        decoded = await agreements(engine, holdout, latents, progress)
        asked = demands(goes_on)
        comparisons = [_compare(name, scores, decoded, groups, seed, asked[name]) for name in CONTROLS]
    again = goes_on and active is not None and candidate.same_weights(active)
    promoted, reason = _decide(finite, covered, again, comparisons)
    return GateReport(
        promoted=promoted,
        reason=reason,
        n=len(holdout),
        neighbourhoods=len(set(groups)),
        unseen=sides.unseen,
        controls=tuple(comparisons),
        latent_error=_latent_errors(holdout, latents, neutral) if finite else {},
        coverage=sum(candidate.competence.covers(e.key) for e in sides.holdout) / len(sides.holdout),
        threshold=float(np.min(candidate.competence.threshold)),
    )


def _judging(candidate: Candidate, sides: Split) -> tuple[tuple[Episode, ...], tuple[int, ...], int]:
    """Return the episodes to judge by, their neighbourhoods, and how many of these are covered.

    Only where the candidate would speak does it matter what it says. When it would speak almost nowhere
    the whole hold-out is measured, for the record.
    """
    pairs = list(zip(sides.holdout, sides.holdout_groups, strict=True))
    inside = [(episode, group) for episode, group in pairs if candidate.competence.covers(episode.key)]
    covered = len({group for _, group in inside})
    chosen = _mixed(inside if covered >= MIN_HOLDOUT else pairs)[:MAX_HOLDOUT]
    return tuple(episode for episode, _ in chosen), tuple(group for _, group in chosen), covered


def _mixed(pairs: Sequence[tuple[Episode, int]]) -> list[tuple[Episode, int]]:
    """Return one episode of each neighbourhood, then a second of each, and so on: any beginning of it holds
    as many neighbourhoods as it can."""
    seen: Counter[int] = Counter()
    turns = []
    for episode, group in pairs:
        turns.append((seen[group], episode, group))
        seen[group] += 1
    return [(episode, group) for _, episode, group in sorted(turns, key=lambda turn: turn[0])]


async def _scores(
    engine: Engine,
    holdout: Sequence[Episode],
    latents: Mapping[str, Latents],
    progress: Callable[[int, int, str], None],
) -> Mapping[str, Scores]:
    """Return replay log-likelihoods per contestant, each (N,)."""
    found = {name: np.zeros(len(holdout)) for name in latents}
    for start in range(0, len(holdout), _EPISODES_PER_CALL):
        progress(start, len(holdout), "replay likelihood of candidate and controls")
        rows = [
            (name, index)
            for index in range(start, min(start + _EPISODES_PER_CALL, len(holdout)))
            for name in latents
        ]
        values = await likelihoods(
            engine, [holdout[index] for _, index in rows], [latents[name][index] for name, index in rows]
        )
        for (name, index), value in zip(rows, values.tolist(), strict=True):
            found[name][index] = value
    progress(len(holdout), len(holdout), "replay likelihood of candidate and controls")
    return found


def _compare(
    name: str,
    scores: Mapping[str, Scores],
    decoded: Mapping[str, Agreement] | None,
    groups: Sequence[int],
    seed: int,
    demand: Demand,
) -> Comparison:
    candidate = grouped_means(scores["candidate"], groups)
    mean = float(candidate.mean())
    if name not in scores:
        return Comparison(name, mean, None, note=_ABSENT[name])
    control = grouped_means(scores[name], groups)
    likelihood = interval(candidate - control, seed)
    measured = [likelihood]
    answers = samples = None
    if decoded is not None:
        ours, theirs = decoded["candidate"], decoded[name]
        answers, found = _answers(ours.greedy, theirs.greedy, groups, seed)
        measured.append(found)
        samples, found = _answers(ours.sampled, theirs.sampled, groups, seed)
        measured.append(found)
    return Comparison(
        name,
        mean,
        float(control.mean()),
        *_bounds(likelihood),
        answers=answers,
        samples=samples,
        win=_meets(demand, measured, answers),
    )


def _answers(
    candidate: Scores, control: Scores, groups: Sequence[int], seed: int
) -> tuple[Answers, Interval]:
    """Return how the agreements of two contestants, (n,), compare, and the interval of their difference."""
    judged = groups[: len(candidate)]
    ours, theirs = grouped_means(candidate, judged), grouped_means(control, judged)
    found = interval(ours - theirs, seed)
    return Answers(len(judged), float(ours.mean()), float(theirs.mean()), *_bounds(found)), found


def _meets(demand: Demand, measured: Sequence[Interval], answers: Answers | None) -> bool:
    """Return whether differences in likelihood and, where there are any, in `answers` are what is asked.

    `measured`: of likelihood, greedy answers and sampled ones. The last can prove; their average alone says
    nothing, for chance parts the samples of equals.
    """
    unproven = all(found.high >= -TIE for found in measured)
    if demand == "not proven worse" and unproven:
        return True
    if answers is not None and (answers.worse or (demand == "proven by answers" and not answers.better)):
        return False
    if demand == "no worse" and unproven:
        return any(abs(found.mean) > TIE for found in measured[:2])
    if any(found.mean > TIE and found.low > 0 for found in measured):
        return True
    return not demand.startswith("proven") and any(found.mean > TIE for found in measured[:2])


def _bounds(found: Interval) -> tuple[float, float | None, float | None]:
    """Return mean, low and high, None where there is no bound: infinity is no JSON."""
    low, high = (bound if np.isfinite(bound) else None for bound in (found.low, found.high))
    return found.mean, low, high


def _decide(finite: bool, covered: int, again: bool, comparisons: Sequence[Comparison]) -> tuple[bool, str]:
    if not finite:
        return False, "latents or likelihoods are not finite"
    if covered < MIN_HOLDOUT:
        return False, f"it covers {covered} held-out neighbourhoods, {MIN_HOLDOUT} are the fewest to judge by"
    lost = [comparison for comparison in comparisons if comparison.win is False]
    if lost:
        return False, "not better than " + ", ".join(_shortfall(comparison) for comparison in lost)
    if again:
        return False, "its weights are those of the active prior"
    against = {comparison.control: comparison for comparison in comparisons}["none"]
    return True, f"holds beside every control, {_against(against)} over no latent"


def _shortfall(comparison: Comparison) -> str:
    answers = comparison.answers
    better = [comparison.difference or 0.0] + ([answers.difference] if answers else [])
    proven = any((one.low or 0.0) > 0 for one in (comparison, comparison.samples) if one)
    doubt = ""
    worse = answers is not None and answers.worse
    if answers and not answers.better and not worse and proven:
        doubt = ": surer, but no more of them agree"
    elif max(better) > TIE and not worse:
        doubt = ": the interval does not exclude zero"
    return f"{CONTROLS[comparison.control]} ({_against(comparison)}{doubt})"


def _against(comparison: Comparison) -> str:
    found = f"{comparison.difference:+.3f}"
    if comparison.answers is None:
        return found
    candidate, control = comparison.answers.candidate, comparison.answers.mean
    return f"{found}, answers agree {100 * candidate:.0f} % instead of {100 * control:.0f} %"


def _latent_errors(
    holdout: Sequence[Episode], latents: Mapping[str, Latents], neutral: torch.Tensor
) -> dict[str, float]:
    """Return mean squared errors to the latents that earned their place; {} when none did."""
    targets = [
        (index, torch.from_numpy(episode.latent.astype(np.float32)))
        for index, episode in enumerate(holdout)
        if episode.latent_earned
    ]
    if not targets:
        return {}

    def error(predicted: Latents) -> float:
        found = [(neutral if (z := predicted[index]) is None else z) - target for index, target in targets]
        return float(np.mean([float(offset.square().mean()) for offset in found]))

    errors = {"candidate": error(latents["candidate"]), "neutral": error([neutral] * len(holdout))}
    return errors | ({"mean": error(latents["mean"])} if "mean" in latents else {})
