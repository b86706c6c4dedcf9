"""What a search gives back.

Owns its values and the promise of a search. Knows nothing of how answers and latents are found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import torch

from model.engine import Generation, Usage
from server.steering.rewards.scorer import Scored

if TYPE_CHECKING:
    from config.settings import SearchName
    from server.steering.search.session import Session

Stopped = Literal["steps", "perfect", "plateau", "budget", "deadline", "engine-error", "signal-lost"]
"""Why a search ended: all steps done, reward 1, no better in a while, tokens or time spent, a failure, or a
signal that scored the first answers and cannot be had any more."""


class Search(Protocol):
    """A way to spend compute on one request, beside the votes that each of them begins with."""

    @property
    def name(self) -> SearchName:
        """Name in settings, requests, traces and episodes."""
        ...

    async def run(self, session: Session) -> None:
        """Take steps in a session that is open.

        Raises:
            SessionEndedError: there is nothing more to gain, or nothing left to spend.
            EngineError: the engine failed; UnsupportedError: it cannot do what this search needs.
        """
        ...


@dataclass(frozen=True, eq=False)
class Candidate:
    """An answer that was tried."""

    answer: Generation
    scored: Scored
    latent: torch.Tensor | None
    """(L, d) behind which it was decoded; None: no latent."""
    refined: bool
    """Whether it comes of a latent that was searched for."""
    finished: bool
    """Whether the request could be given it: it has an end, the form that was asked for, and its length."""

    @property
    def reward(self) -> float:
        """Q, in [0, 1]."""
        return self.scored.reward


@dataclass(frozen=True)
class Step:
    """One step: rewards of what it tried, in order, and the best reward so far."""

    step: int
    rewards: tuple[float, ...]
    best: float


@dataclass(frozen=True, eq=False)
class SearchResult:
    """What a search found."""

    stopped: Stopped
    plain: Candidate | None = None
    """The greedy answer without a latent; None when not even that could be decoded."""
    served: Candidate | None = None
    """The greedy answer to the latent that would be served without a search; None: none would."""
    best: Candidate | None = None
    """The greedy answer of the highest reward, the plain one where nothing beat it."""
    elected: Candidate | None = None
    """The answer to give: finished, and what most votes are for, or what a verifier or the operator's own
    signals prefer; None: there is none."""
    example: Candidate | None = None
    """The answer to remember: as good as that one, and shorter where there is one."""
    plain_answers: Sequence[Generation] = ()
    """Answers without a latent: the greedy one, then those that voted."""
    served_answers: Sequence[Generation] = ()
    """The same of the latent that would be served."""
    steps: tuple[Step, ...] = ()
    usage: Usage = field(default_factory=Usage)
    unavailable: tuple[str, ...] = ()
    """Reward signals that should have applied and could not be had."""

    @property
    def lift(self) -> float | None:
        """Rise of Q from the unsteered answer to what would be served, in [-1, 1]; None: not measured."""
        if self.served is None or self.plain is None:
            return None
        return self.served.reward - self.plain.reward
