"""The night's verdict: where a trained prior deserves to serve.

Owns how judgements of single kinds of task (`worker/gate.py`) make one decision. Each kind is judged by
itself, for the mean of all would hide a kind that is spoilt behind one that gains, and hold back one that
gains for one that does not (ADR 0019):

* A kind where the candidate passes the gate is served.
* One where it does not is answered plainly, unless the active prior speaks there. What serves is not taken
  away: there a candidate that went on from the active prior is served too when no interval of a difference
  to it and to no latent lies below zero; otherwise the whole candidate is refused.
* It is promoted when at least one kind passes the gate.

With a single kind the verdict is the gate's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from memory.prior import Competence, Prior, PriorNetwork
from model.engine import Engine
from worker.contestants import Candidate, Recall
from worker.gate import TIE, Comparison, GateReport, judge
from worker.kinds import Kind, kinds
from worker.region import recall_floor, region
from worker.split import Split

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
    """Where it may speak: the kinds that it is to serve, or all judged ones when it is refused."""
    recall_floor: float
    """Least cosine of a recalled episode there."""


@dataclass(frozen=True, eq=False)
class _Judged:
    kind: Kind
    competence: Competence
    floor: float
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
    judged = []
    for kind in kinds(sides):
        competence = region(kind.train, kind.holdout, seed)
        floor = recall_floor(kind.train, kind.holdout)
        report = await judge(
            engine,
            Candidate(network, competence),
            active,
            kind.sides(sides),
            recall=recall(floor),
            seed=seed,
            goes_on=goes_on,
            progress=progress,
        )
        judged.append(_Judged(kind, competence, floor, report))
    if len(judged) == 1:
        return Verdict(judged[0].report, judged[0].competence, judged[0].floor)
    return _together(judged, active, goes_on)


def _together(judged: Sequence[_Judged], active: Prior | None, goes_on: bool) -> Verdict:
    fates = [_fate(one, active, goes_on) for one in judged]
    promoted = "served" in fates and LOST not in fates
    kept = [one for one, fate in zip(judged, fates, strict=True) if fate in SERVED]
    served = kept if promoted else list(judged)
    held_out = sum(len(one.kind.holdout) for one in judged)
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
        coverage=sum(one.report.coverage * len(one.kind.holdout) for one in served) / held_out,
        threshold=min(one.report.threshold for one in served),
        kinds=tuple(one.report for one in judged),
    )
    return Verdict(
        report, Competence.joined([one.competence for one in served]), min(one.floor for one in served)
    )


def _fate(judged: _Judged, active: Prior | None, goes_on: bool) -> str:
    """Return what becomes of a kind, in words."""
    if judged.report.promoted:
        return "served"
    if active is None or not _speaks(active, judged.kind):
        return "left plain"
    return KEPT if goes_on and _holds(judged.report) else LOST


def _speaks(active: Prior, kind: Kind) -> bool:
    covered = sum(active.covers(episode.key) for episode in kind.holdout)
    return covered >= SPEAKS * len(kind.holdout)


def _holds(report: GateReport) -> bool:
    """Return whether nothing proves the candidate worse than the active prior or no latent."""
    rows = [row for row in report.controls if row.control in ("none", "active")]
    return len(rows) == 2 and not any(_proven_worse(row) for row in rows)


def _proven_worse(row: Comparison) -> bool:
    bounds = [row.high, row.answers.high if row.answers else None]
    return any(high is not None and high < -TIE for high in bounds)
