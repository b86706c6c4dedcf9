"""What rounds say about arms.

Owns the summary: absolute figures of each arm, and ratios to bare vLLM paired by round.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bench.serve.arms import BARE
from bench.serve.load import Round
from bench.statistics import quantiles_ms, ratio

MEASURES = {"throughput": "tokens_per_s", "first_token": "first_s", "between_tokens": "gap_s"}
"""Ratios by name, and the property of a round that each compares."""


def summary(rounds: Mapping[str, Sequence[Round]]) -> dict[str, Any]:
    """Return figures by arm at one concurrency. Round n of every arm ran beside round n of the others."""
    return {arm: _arm(measured, rounds[BARE] if arm != BARE else None) for arm, measured in rounds.items()}


def _arm(rounds: Sequence[Round], bare: Sequence[Round] | None) -> dict[str, Any]:
    replies = [reply for each in rounds for reply in each.replies]
    modes: Counter[str] = sum((each.modes for each in rounds), Counter())
    found: dict[str, Any] = {
        "rounds": len(rounds),
        "requests": len(replies),
        "tokens": sum(reply.tokens for reply in replies),
        "tokens_per_s": sum(reply.tokens for reply in replies) / sum(each.seconds for each in rounds),
        "first_token": quantiles_ms([reply.first_s for reply in replies]),
        "between_tokens": quantiles_ms(
            [gap for reply in replies if (gap := reply.gap_s) is not None] or [0.0]
        ),
        "modes": dict(modes),
    }
    if bare is not None:
        found["ratio_to_bare"] = {
            name: ratio([getattr(each, of) for each in rounds], [getattr(each, of) for each in bare])
            for name, of in MEASURES.items()
            if all(getattr(each, of) > 0 for each in (*rounds, *bare))
        }
    return found
