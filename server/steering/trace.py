"""What happened to one request, as it can be looked up later.

Owns the record's fields and its JSON. Knows nothing of where records are kept. No prompt and no answer
is in it: those are in the episode, when there is one.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import torch

from memory.episode import now
from server.steering.call import Outcome, SteeringOptions
from server.steering.refiners.refiner import RefineStep

Remembered = Literal["no", "pending", "stored", "failed", "dropped", "refused", "deleted"]


@dataclass(frozen=True, eq=False)
class Trace:
    """One request's steering: its options, what was decided and measured, and its latent."""

    id: str
    space: str
    options: SteeringOptions
    outcome: Outcome
    refiner: str | None = None
    """Refiner that ran; None when nothing was refined."""
    floor: float | None = None
    """Least cosine of a recalled episode, also when the request gave none."""
    seed: int | None = None
    """Seed that refining used, also when the request gave none."""
    stopped: str | None = None
    """Why refining ended."""
    signals_before: dict[str, float] = field(default_factory=dict)
    signals_after: dict[str, float] = field(default_factory=dict)
    signals_unavailable: tuple[str, ...] = ()
    """Reward signals that should have applied and could not be had."""
    steps: tuple[RefineStep, ...] = ()
    timings_s: dict[str, float] = field(default_factory=dict)
    """Seconds per stage that ran, and `total`."""
    remembered: Remembered = "no"
    episode_id: str | None = None
    why_not_remembered: str | None = None
    created_at: datetime = field(default_factory=now)

    def to_json(self) -> dict[str, Any]:
        """Return everything but the latent's values."""
        outcome, options = self.outcome, self.options
        latent = outcome.latent
        return {
            "id": self.id,
            "created_at": self.created_at.isoformat(),
            "space": self.space,
            "effort": options.effort,
            "effort_source": options.effort_source,
            "options": {
                "search": self.refiner or options.search,
                "k": options.k,
                "floor": options.floor if self.floor is None else self.floor,
                "steps": options.steps,
                "budget_tokens": options.budget_tokens,
                "deadline_s": options.deadline_s,
                "prior": options.prior,
                "store": options.store,
                "explore": options.explore,
                "seed": self.seed if self.seed is not None else options.seed,
            },
            "mode": outcome.mode,
            "reason": outcome.reason,
            "prior_version": outcome.prior_version,
            "episodes": [
                {"id": episode_id, "similarity": similarity}
                for episode_id, similarity in zip(outcome.episode_ids, outcome.similarities, strict=True)
            ],
            "reward_before": outcome.reward_before,
            "reward_after": outcome.reward_after,
            "signals": self.signals_after,
            "signals_before": self.signals_before,
            "signals_unavailable": list(self.signals_unavailable),
            "steps": [
                {"step": step.step, "rewards": list(step.rewards), "best": step.best} for step in self.steps
            ],
            "stopped": self.stopped,
            "usage": {
                "prompt_tokens": outcome.usage.prompt_tokens,
                "generated_tokens": outcome.usage.generated_tokens,
                "forward_tokens": outcome.usage.forward_tokens,
            },
            "timings_s": self.timings_s,
            "remembered": self.remembered,
            "episode_id": self.episode_id,
            "why_not_remembered": self.why_not_remembered,
            "position": outcome.position,
            "latent": None if latent is None else {"shape": list(latent.shape), "norm": _norm(latent)},
        }


def _norm(latent: torch.Tensor) -> float:
    return float(latent.norm())
