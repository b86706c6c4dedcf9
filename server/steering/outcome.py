"""What became of one request: what is served, what its headers say of that, and the trace that is kept.

Owns the words: modes, reasons of errors, fields of headers and traces. Knows nothing of where traces are kept
or how anything was found. What a trace shows holds no prompt and no answer: those are in the episode, if
there is one, and beside the trace for feedback and for the list of recent requests.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import torch

from memory.episode import now
from memory.experiment import Arm
from model.engine import EngineError, Generation, PlacementError, Usage
from model.space import LatentRejectedError
from server.steering.prompt import Options
from server.steering.search.result import SearchResult

logger = logging.getLogger(__name__)

Mode = Literal["plain", "recall", "prior", "recall+prior", "calibrated", "voted", "refined"]
"""What really ran. `plain`: bare vLLM; of the last three the answer was found by searching."""
SEARCHED: frozenset[Mode] = frozenset({"calibrated", "voted", "refined"})
"""Modes whose answer is the one that is remembered, in other words at most."""
Remembered = Literal["no", "pending", "stored", "failed", "dropped", "refused", "deleted"]

HEADERS = ("mode", "reason", "effort", "prior", "episodes", "trace", "reward-before", "reward-after")
"""What an answer may say of its steering."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What steering decided for one request."""

    mode: Mode
    reason: str
    """Why: a short fixed phrase such as `nothing-recalled` or `store-unavailable`."""
    latent: torch.Tensor | None = None
    """(L, d), checked; None: no latent stands before the answer."""
    position: int | None = None
    answer: Generation | None = None
    """What the client gets; None: it is decoded, behind the latent where there is one."""
    prior_version: str | None = None
    """Version of the prior that served this request, also when it stayed silent."""
    episode_ids: tuple[str, ...] = ()
    similarities: tuple[float, ...] = ()
    reward_before: float | None = None
    reward_after: float | None = None
    usage: Usage = field(default_factory=Usage)

    def headers(self, effort: str, trace_id: str | None) -> dict[str, str]:
        """Return what an answer says of it, by names of `HEADERS`."""
        said = {
            "mode": self.mode,
            "reason": self.reason,
            "effort": effort,
            "prior": self.prior_version or "none",
            "episodes": ",".join(self.episode_ids),
            "trace": trace_id or "none",
        }
        for name, reward in (("before", self.reward_before), ("after", self.reward_after)):
            if reward is not None:
                said[f"reward-{name}"] = f"{reward:.4f}"
        return said


def reason_of(error: Exception, trace_id: str) -> str:
    """Return the reason of a request that an error leaves without steering, and log it."""
    match error:
        case PlacementError():
            return "no-place-for-latents"
        case TimeoutError():
            reason = "deadline"
        case LatentRejectedError():
            reason = "latent-refused"
        case EngineError():
            reason = "engine-error"
        case _:
            logger.error("trace %s: steering failed", trace_id, exc_info=error)
            return "steering-failed"
    logger.error("trace %s: %s: %s: %s", trace_id, reason, type(error).__name__, error)
    return reason


@dataclass(frozen=True)
class Asked:
    """What an episode of a request says of its question."""

    prompt: str
    """Id of the prompt's episode."""
    token_ids: tuple[int, ...]
    text: str
    choices: tuple[str, ...]
    max_tokens: int

    def to_json(self) -> dict[str, Any]:
        """Return what `of_json` reads."""
        return {
            "token_ids": list(self.token_ids),
            "text": self.text,
            "choices": list(self.choices),
            "max_tokens": self.max_tokens,
        }

    @classmethod
    def of_json(cls, prompt: str, values: Mapping[str, Any]) -> "Asked":
        """Return what was asked under the id of a prompt."""
        return cls(
            prompt,
            tuple(values["token_ids"]),
            values["text"],
            tuple(values["choices"]),
            values["max_tokens"],
        )


@dataclass(frozen=True)
class Answer:
    """What a client got, or what is remembered in place of that, for it says the same."""

    token_ids: tuple[int, ...]
    text: str
    finished: bool
    """Whether it ended by itself."""

    @classmethod
    def of(cls, generation: Generation) -> "Answer":
        """Return a decoded answer."""
        return cls(generation.token_ids, generation.text, generation.finish_reason == "stop")

    def to_json(self) -> dict[str, Any]:
        """Return what `of_json` reads."""
        return {"token_ids": list(self.token_ids), "text": self.text, "finished": self.finished}

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> "Answer":
        """Return the answer."""
        return cls(tuple(values["token_ids"]), values["text"], values["finished"])


@dataclass(frozen=True)
class Assignment:
    """The arm of one request."""

    unit: str
    """Digest of whom or what it was assigned to."""
    arm: Arm

    def to_json(self) -> dict[str, str]:
        """Return what `of_json` reads."""
        return {"unit": self.unit, "arm": self.arm}

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> "Assignment":
        """Return the assignment."""
        return cls(values["unit"], values["arm"])


@dataclass(frozen=True, eq=False)
class Trace:
    """One request's steering: its options, what was decided and measured, and its latent."""

    id: str
    space: str
    options: Options
    outcome: Outcome
    search: str | None = None
    """Search that ran; None when nothing was searched for."""
    found: SearchResult | None = None
    """What it found; None also where it failed."""
    floor: float | None = None
    """Least cosine of a recalled episode; None: memory was not asked."""
    seed: int | None = None
    """Of what was sampled; None: nothing was."""
    timings_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds per stage that ran, and `total`."""
    remembered: Remembered = "no"
    episode_id: str | None = None
    why_not_remembered: str | None = None
    created_at: datetime = field(default_factory=now)
    assignment: Assignment | None = None
    """Its arm in the experiment."""
    asked: Asked | None = None
    """For feedback; None where the request asked for nothing to be remembered."""
    answer: Answer | None = None
    """None where it is still to be decoded."""

    def to_json(self) -> dict[str, Any]:
        """Return all that is shown but the latent's values."""
        outcome, options, found = self.outcome, self.options, self.found
        latent = outcome.latent
        return {
            "id": self.id,
            "created_at": self.created_at.isoformat(),
            "space": self.space,
            "effort": options.effort,
            "effort_source": options.effort_source,
            "options": {
                "search": self.search or (options.search if "search" in options.given else None),
                "k": options.k,
                "floor": options.floor if self.floor is None else self.floor,
                "steps": options.steps,
                "budget_tokens": options.budget_tokens,
                "deadline_s": options.deadline_s,
                "prior": options.prior,
                "store": options.store,
                "explore": options.explore,
                "seed": options.seed if self.seed is None else self.seed,
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
            "signals": dict(found.best.scored.signals) if found and found.best else {},
            "signals_before": dict(found.plain.scored.signals) if found and found.plain else {},
            "signals_unavailable": list(found.unavailable) if found else [],
            "steps": [
                {"step": step.step, "rewards": list(step.rewards), "best": step.best}
                for step in (found.steps if found else ())
            ],
            "stopped": found.stopped if found else None,
            "usage": {
                "prompt_tokens": outcome.usage.prompt_tokens,
                "generated_tokens": outcome.usage.generated_tokens,
                "forward_tokens": outcome.usage.forward_tokens,
            },
            "timings_s": dict(self.timings_s),
            "remembered": self.remembered,
            "episode_id": self.episode_id,
            "why_not_remembered": self.why_not_remembered,
            "experiment": self.assignment.to_json() if self.assignment else None,
            "position": outcome.position,
            "latent": None if latent is None else {"shape": list(latent.shape), "norm": float(latent.norm())},
        }
