"""How often faster one thing is than another: paired ratios.

Owns their mean, its interval and how both are written. Knows nothing of what was measured, nor of commands.
"""

import math
from collections.abc import Mapping, Sequence


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float | int]:
    """Return the geometric mean of paired ratios with its 95 % bootstrap interval.

    Logarithms are averaged, so that a/b and b/a say the same. `n` pairs; one pair has no interval.
    """
    import numpy as np  # with torch, a second or more for a command that only shows its help

    from bench.bootstrap import interval

    found = interval(np.log(np.asarray(above, dtype=np.float64) / np.asarray(below, dtype=np.float64)))
    return {
        "ratio": math.exp(found.mean),
        "low": math.exp(found.low) if math.isfinite(found.low) else -math.inf,
        "high": math.exp(found.high) if math.isfinite(found.high) else math.inf,
        "n": len(above),
    }


def ratio_text(found: Mapping[str, float | int]) -> str:
    """Return `1.02 (0.98–1.06)`, without brackets where there is no interval."""
    if not math.isfinite(found["high"]):
        return f"{found['ratio']:.2f}"
    return f"{found['ratio']:.2f} ({found['low']:.2f}–{found['high']:.2f})"
