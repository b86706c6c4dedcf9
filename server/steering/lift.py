"""Whether steering has helped in a neighbourhood.

Owns the rule by which requests fall back to plain where steering was measured and did not pay. Knows
nothing of how lifts are measured: refining and exploring write them into episodes.
"""

from collections import defaultdict
from collections.abc import Sequence

from memory.episode import Episode
from memory.store import Neighbour

MIN_MEASURED = 2
"""Fewer neighbours say too little: then all that was measured since the start decides."""
MIN_OVERALL = 8
"""Fewer measurements in all say too little: then the gate's word on the prior stands, and recall is tried."""


class LiftTally:
    """Lifts that were remembered since the start, by the prior that was active."""

    def __init__(self) -> None:
        self._lifts: defaultdict[str | None, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def note(self, episode: Episode, fate: str) -> None:
        """Count a stored episode's lift, if it was measured. A listener for `Remember`."""
        if fate == "stored" and episode.start_lift is not None:
            found = self._lifts[episode.prior_version]
            found[0] += episode.start_lift
            found[1] += 1

    def mean(self, prior_version: str | None) -> float | None:
        """Return the mean lift under a prior; None: fewer than `MIN_OVERALL` were measured."""
        total, count = self._lifts[prior_version]
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
