"""What the ways to learn say of each other.

Owns which pairs are compared: what carries more, on the same labels; better labels, in the same; and the
latent with what published methods make of the same questions. Knows nothing of how they were made.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.bounds.measure import GOLD, KV, LATENT, LORA, TTRL, TTSV
from bench.statistics import Interval
from bench.stream.questions import STREAM
from bench.stream.summary import Row, paired

CAPACITY, LABELS, METHOD = "capacity", "labels", "method"
PAIRS = (
    (CAPACITY, LORA, LATENT),
    (CAPACITY, KV, LATENT),
    (METHOD, LATENT, TTSV),
    (METHOD, LATENT, TTRL),
    (LABELS, GOLD, LATENT),
)


@dataclass(frozen=True)
class Compared:
    """Two ways on the same questions."""

    what: str
    above: str
    below: str
    questions: str
    """Name of the set."""
    difference: Interval


def comparisons(rows: Sequence[Row]) -> list[Compared]:
    """Return all pairs that were asked, the stream's own questions first."""
    answered = [row for row in rows if "tokens" in row]
    sets = sorted({row["set"] for row in answered}, key=lambda name: (name != STREAM, name))
    found = []
    for name in sets:
        of = {arm: [row for row in answered if row["arm"].partition("@")[0] == arm and row["set"] == name]
              for _, *arms in PAIRS for arm in arms}  # fmt: skip
        for what, above, below in PAIRS:
            difference = paired(of[above], of[below])
            if difference is not None:
                found.append(Compared(what, above, below, name, difference))
    return found
