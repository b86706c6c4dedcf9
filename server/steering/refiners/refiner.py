"""What a search is given and what it gives back.

Owns the protocol and its values. Knows nothing of how answers and latents are found.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch

from model.engine import Generation, Usage
from server.steering.call import RenderedPrompt
from server.steering.rewards.scorer import Scored

Stopped = Literal["steps", "perfect", "plateau", "budget", "deadline", "engine-error", "signal-lost"]
"""Why refining ended: all steps done, reward 1, no better in a while, tokens or time spent, a failure, or a
signal that scored the first answers and cannot be had any more."""


@dataclass(frozen=True)
class Limits:
    """How far one refinement may go."""

    steps: int
    """Most optimisation steps; 0 only samples and votes."""
    votes: int
    """Sampled rollouts that vote, one less where that is odd and two sides vote."""
    population: int
    """Candidates (evolution, even) or rollouts (gradient) per step."""
    max_tokens: int
    """Longest answer that may be kept."""
    seed: int
    deadline_s: float
    """Time from the start of refining after which it ends with its best."""
    budget_tokens: int | None = None
    """Most tokens that may be generated, those of rewards included; None: no limit but the steps."""
    vote_tokens: int = 0
    """Longest rollout that votes, where that is more than `max_tokens`: a vote may think longer."""
    start_is_served: bool = False
    """Whether the start would be served without refining; then it votes on equal terms with no latent."""


@dataclass(frozen=True)
class RefineStep:
    """One step: rewards of what it tried, in order, and the best reward so far."""

    step: int
    rewards: tuple[float, ...]
    best: float


@dataclass(frozen=True, eq=False)
class Elected:
    """The answer that a search gives."""

    answer: Generation
    scored: Scored
    latent: torch.Tensor | None
    """(L, d) behind which it was decoded."""
    refined: bool
    """Whether it comes of a latent that was searched for."""


@dataclass(frozen=True, eq=False)
class RefineResult:
    """What a search found. Doing nothing takes part: `latent` is None when nothing beat it."""

    stopped: Stopped
    latent: torch.Tensor | None = None
    """(L, d) of the best answer; None: the unsteered answer is the best."""
    answer: Generation | None = None
    """The best answer; None when not even the unsteered one could be decoded."""
    reward_before: float | None = None
    """Q of the unsteered answer; None when it was not measured."""
    reward_start: float | None = None
    """Q of the answer to the latent that refining started from."""
    reward_after: float | None = None
    """Q of the best answer, never below `reward_before`."""
    signals_before: Mapping[str, float] = field(default_factory=dict)
    signals_after: Mapping[str, float] = field(default_factory=dict)
    finished: bool = False
    """Whether the best answer has an end, and the form that the request asks for."""
    from_start: bool = False
    """The best latent is the one that refining started from."""
    elected: Elected | None = None
    """The answer to give: finished, in the form the request asks for, and what most votes are
    for, or what a verifier or the operator's own signals prefer; None: there is none."""
    example: Elected | None = None
    """The answer to remember: as good as that one, and shorter where there is one."""
    plain: tuple[Generation, ...] = ()
    """Answers without a latent: the greedy one, then those that voted."""
    start: tuple[Generation, ...] = ()
    """The same of the latent that refining started from."""
    steps: tuple[RefineStep, ...] = ()
    usage: Usage = field(default_factory=Usage)
    unavailable: tuple[str, ...] = ()
    """Reward signals that should have applied and could not be had."""

    @property
    def lift(self) -> float | None:
        """Rise of Q from the unsteered answer to the start's, in [−1, 1]; None: it was not measured."""
        if self.reward_start is None or self.reward_before is None:
            return None
        return self.reward_start - self.reward_before


class Refiner(Protocol):
    """Searches for the answer to one prompt."""

    @property
    def name(self) -> Literal["vote", "evolution", "gradient"]:
        """Name in settings, traces and episodes."""
        ...

    async def refine(
        self, prompt: RenderedPrompt, start: torch.Tensor, position: int, limits: Limits
    ) -> RefineResult:
        """Return the best answer, and the best latent found from `start`, (L, d), within the limits.

        Raises:
            EngineError, LatentRejectedError: the engine failed before the first answer was scored.
            UnsupportedError: the engine cannot do what this refiner needs.
        """
        ...
