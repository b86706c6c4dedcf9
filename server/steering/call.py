"""One request's steering, from the options it chose to what came of it.

Owns the values that the HTTP layer, the steering pipeline and the vLLM hook hand each other, and
the context variable that carries them through vLLM's own serving code. Knows neither HTTP nor vLLM.
"""

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from memory.episode import new_id
from model.engine import Decoding, Generation, Usage

Effort = Literal["none", "low", "medium", "high"]
Mode = Literal["plain", "recall", "prior", "recall+prior", "calibrated", "voted", "refined"]
"""What really ran. `plain`: bare vLLM; of the last three the answer was found by searching."""


class SteeringRejectedError(ValueError):
    """A request that asks for what cannot be done; becomes an OpenAI-shaped 400.

    `param` names the request's field, such as `latent.prior`.
    """

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class SteeringOptions:
    """What a request chose; None: the server's setting."""

    effort: Effort
    effort_source: Literal["latent.effort", "model", "reasoning_effort", "default"] = "default"
    search: Literal["vote", "evolution", "gradient"] | None = None
    k: int | None = None
    floor: float | None = None
    steps: int | None = None
    budget_tokens: int | None = None
    """Most tokens that refining may generate."""
    deadline_s: float | None = None
    prior: str | None = None
    """Version of the prior to use, `none` for no prior."""
    store: bool = True
    explore: bool | None = None
    """Whether several answers are sampled after this one was given; None: the server's share decides."""
    seed: int | None = None


@dataclass(frozen=True)
class RenderedPrompt:
    """A request as vLLM rendered it."""

    token_ids: tuple[int, ...]
    text: str
    """The rendered prompt as text."""
    question: str
    """Text of the last user message, for rewards that read it."""
    decoding: Decoding
    """How the request asked to be decoded; the final answer is decoded by vLLM itself."""
    format_rules: Mapping[str, Any] = field(default_factory=dict)
    """Checks that the request implies: `json_schema`, `json_object`, `regex`, `boxed`."""
    held_to: str | None = None
    """The grammar that holds its answers, as text, whatever kind it is; None: none."""
    scored_choices: tuple[str, ...] = ()
    """What the answer is held to, where nothing but the model's probabilities decides between them."""
    asked_tokens: int | None = None
    """Longest answer that the request asked for; None: as long as the context allows."""
    answers: int = 1
    """How many answers it asked for."""


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


@dataclass
class SteeringCall:
    """One request on its way; filled in by the hook."""

    options: SteeringOptions
    trace_id: str = field(default_factory=new_id)
    traced: bool = False
    """Whether steering ran, and so left a trace of this id."""
    outcome: Outcome | None = None
    left: bool = False
    """Whether the client has gone."""
    batch: list["SteeringCall"] | None = None
    """Of a request of several conversations: a call for each, in their order, once it is rendered."""

    def conversation(self) -> "SteeringCall":
        """Return the call of the conversation that is being rendered: of a batch, a new one."""
        if self.batch is None:
            return self
        self.batch.append(SteeringCall(self.options))
        return self.batch[-1]

    @property
    def conversations(self) -> list["SteeringCall"]:
        """What was rendered: of a batch, the call of each conversation, else itself."""
        return self.batch or [self]

    def leave(self) -> None:
        """Note that the client has gone."""
        for call in (self, *(self.batch or ())):
            call.left = True


current_call: ContextVar[SteeringCall | None] = ContextVar("current_call", default=None)
"""The call of the request being served; None outside of steered routes."""
