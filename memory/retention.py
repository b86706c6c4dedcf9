"""Which episodes go by themselves.

Owns the rule. Knows nothing of stores or of when it is asked.

    An episode goes `max_days` after its prompt last came. Of more than `max_episodes`, those go whose prompts
    came longest ago, down to 95 % of that, so that one round makes room for many.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from memory.store import Outline

KEPT = 0.95
"""Share of the most that is left when there are more."""


@dataclass(frozen=True)
class Departing:
    """Ids of episodes that go."""

    expired: list[str]
    evicted: list[str]


def departing(
    outlines: Iterable[Outline], *, at: datetime, max_days: float | None, max_episodes: int | None
) -> Departing:
    """Return what goes.

    Args:
        outlines: Of all there is.
        at: The present.
        max_days: Since a prompt last came; None: however long ago that was.
        max_episodes: None: however many there are.
    """
    by_age = sorted((one.seen_last, one.id) for one in outlines)
    expired: list[str] = []
    if max_days is not None:
        limit = at - timedelta(days=max_days)
        expired = [name for seen, name in by_age if seen < limit]
    left = [name for _, name in by_age[len(expired) :]]
    if max_episodes is None or len(left) <= max_episodes:
        return Departing(expired, [])
    return Departing(expired, left[: len(left) - max(1, int(KEPT * max_episodes))])
