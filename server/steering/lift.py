"""Whether steering has helped in a neighbourhood.

Owns the rule by which requests fall back to plain where steering was measured and did not pay. Knows
nothing of how lifts are measured: refining and exploring do, and write them into what is remembered.
"""

from collections import defaultdict
from collections.abc import Sequence

from memory.store import Neighbour
from server.steering.call import Mode

MIN_MEASURED = 2
"""Fewer neighbours say too little: then all that was measured since the start decides."""
MIN_OVERALL = 8
"""Fewer measurements in all say too little: then the gate's word on the prior stands, and recall is tried."""


class LiftTally:
    """Lifts that were measured since the start, by the way to steer and the prior that was active.

    Also where nothing was worth remembering, for there steering has helped less; not of requests that are not
    to be kept.
    """

    def __init__(self) -> None:
        self._lifts: defaultdict[tuple[Mode, str | None], list[float]] = defaultdict(lambda: [0.0, 0.0])

    def note(self, mode: Mode, prior_version: str | None, lift: float) -> None:
        """Count a lift."""
        found = self._lifts[mode, prior_version]
        found[0] += lift
        found[1] += 1

    def mean(self, mode: Mode, prior_version: str | None) -> float | None:
        """Return the mean lift; None: fewer than `MIN_OVERALL` were measured."""
        total, count = self._lifts[mode, prior_version]
        return total / count if count >= MIN_OVERALL else None


def lift_nearby(near: Sequence[Neighbour], prior_version: str | None) -> float | None:
    """Return the mean rise of the reward that neighbours saw from being steered, in [−1, 1].

    Only lifts that were measured under the same prior count, for another one would have started them
    elsewhere. None: fewer than `MIN_MEASURED` were.

    Args:
        near: Neighbours of the request, those included whose latent is never recalled.
        prior_version: Version that serves the request; None: no prior.
    """
    lifts = [
        found.start_lift
        for found in near
        if found.start_lift is not None and found.prior_version == prior_version
    ]
    return sum(lifts) / len(lifts) if len(lifts) >= MIN_MEASURED else None
