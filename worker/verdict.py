"""The night's verdict: where a trained prior deserves to serve.

Owns how judgements of single kinds of task (`worker/gate.py`) make one decision. Each kind is judged by
itself, for the mean of all would hide a kind that is spoilt behind one that gains, and hold back one that
gains for one that does not (ADR 0019):

* Where the candidate passes the gate it is served.
* Where it does not the prior stays silent, unless the active one speaks there. What serves is not taken
  away: there a candidate that went on from the active prior is served too when no interval of a difference
  to it and to no latent lies below zero; otherwise the whole candidate is refused.
* Where nobody can judge tonight, for there is too little or nothing of the kind in memory, a candidate that
  went on speaks where the active prior does. One that began anew stays silent, and each does at kinds that
  were left out because the unsteered answers were the best.
* It is promoted when at least one kind passes the gate.

With a single kind the verdict is the gate's. Where the active prior is silent, nothing is granted for having
gone on from it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from memory.episode import Array, Episode
from memory.prior import KIND_COSINE, Competence, Prior, PriorNetwork
from model.engine import Engine
from worker.contestants import Candidate, Recall
from worker.gate import TIE, Comparison, GateReport, judge
from worker.kinds import Kind, kinds
from worker.neighbourhood import stack_keys
from worker.region import recall_floor, region
from worker.split import Split

SILENT = "left without the prior"
KEPT = "served as before"
LOST = "would lose what the active prior serves"
SERVED = ("served", KEPT)

SPEAKS = 0.5
"""Share of a kind's hold-out from which on the active prior counts as serving it."""


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a candidate is worth, and where."""

    report: GateReport
    competence: Competence
    """Where it may speak: the kinds that it is to serve, all judged ones when it is refused, and what the
    active prior serves elsewhere."""
    recall_floor: float
    """Least cosine of a recalled episode there; of several kinds the least."""


@dataclass(frozen=True, eq=False)
class _Judged:
    kind: Kind
    competence: Competence
    report: GateReport


async def decide(
    engine: Engine,
    network: PriorNetwork,
    active: Prior | None,
    sides: Split,
    *,
    recall: Callable[[float], Recall],
    seed: int,
    goes_on: bool,
    progress: Callable[[int, int, str], None] = lambda done, total, message: None,
) -> Verdict:
    """Judge a trained `network` kind by kind.

    Args:
        engine: the model.
        network: the candidate's.
        active: the prior that serves now.
        sides: what it was trained on, and the hold-out.
        recall: how the server recalls, given the floor that was learned.
        seed: of everything that is drawn.
        goes_on: whether training began with the active prior's weights.
        progress: called with (done, total, message).

    Raises:
        EngineError: the engine failed.
    """
    found = kinds(sides)
    floor = min(recall_floor(kind.train, kind.holdout) for kind in found)  # served everywhere
    judged = []
    for kind in found:
        competence = region(kind.train, kind.holdout, seed)
        report = await judge(
            engine,
            Candidate(network, competence),
            active,
            kind.sides(sides),
            recall=recall(floor),
            seed=seed,
            goes_on=goes_on and active is not None and _speaks(active, kind),
            progress=progress,
        )
        judged.append(_Judged(kind, competence, report))
    report, served = (judged[0].report, judged) if len(judged) == 1 else _together(judged, active, goes_on)
    covered = sum(one.report.coverage * len(one.kind.holdout) for one in served)
    report = replace(report, coverage=covered / len(sides.holdout))
    parts = [one.competence for one in served]
    if goes_on and active is not None:
        parts += _elsewhere(active, [*(one.competence.centroids for one in judged), *_keys(sides.left_out)])
    return Verdict(report, Competence.joined(parts), floor)


def _together(
    judged: Sequence[_Judged], active: Prior | None, goes_on: bool
) -> tuple[GateReport, Sequence[_Judged]]:
    """Return the report on several kinds, and those that are to be served; all when it is refused."""
    fates = [_fate(one, active, goes_on) for one in judged]
    promoted = "served" in fates and LOST not in fates
    kept = [one for one, fate in zip(judged, fates, strict=True) if fate in SERVED]
    served = kept if promoted else judged
    report = replace(
        judged[0].report,
        promoted=promoted,
        reason="; ".join(
            f"kind {number} of {len(judged)} {fate}: {one.report.reason}"
            for number, (one, fate) in enumerate(zip(judged, fates, strict=True), start=1)
        ),
        n=sum(one.report.n for one in judged),
        neighbourhoods=sum(one.report.neighbourhoods for one in judged),
        controls=(),
        latent_error={},
        threshold=min(one.report.threshold for one in served),
        kinds=tuple(one.report for one in judged),
    )
    return report, served


def _keys(episodes: Sequence[Episode]) -> list[Array]:
    return [stack_keys(episodes)] if episodes else []


def _elsewhere(active: Prior, known: Sequence[Array]) -> list[Competence]:
    """Return the part of the active prior's region that is of no kind of `known` keys, if there is any."""
    near = np.concatenate(known)
    region = active.competence
    apart = (region.centroids @ near.T).max(axis=1) <= KIND_COSINE  # (C,)
    thresholds = np.broadcast_to(np.float32(region.threshold), len(apart))
    if not apart.any():
        return []
    return [Competence(region.centroids[apart], thresholds[apart], region.means_of_all[apart])]


def _fate(judged: _Judged, active: Prior | None, goes_on: bool) -> str:
    """Return what becomes of a kind, in words."""
    if judged.report.promoted:
        return "served"
    if active is None or not _speaks(active, judged.kind):
        return SILENT
    return KEPT if goes_on and _holds(judged.report) else LOST


def _speaks(active: Prior, kind: Kind) -> bool:
    covered = sum(active.covers(episode.key) for episode in kind.holdout)
    return covered >= SPEAKS * len(kind.holdout)


def _holds(report: GateReport) -> bool:
    """Return whether nothing proves the candidate worse than the active prior or no latent."""
    rows = [row for row in report.controls if row.control in ("none", "active")]
    return len(rows) == 2 and not any(_proven_worse(row) for row in rows)


def _proven_worse(row: Comparison) -> bool:
    bounds = [row.high, *(found.high for found in (row.answers, row.samples) if found)]
    return any(high is not None and high < -TIE for high in bounds)
