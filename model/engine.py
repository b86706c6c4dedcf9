"""What steering, rewards and the night ask of a language model.

Owns the `Engine` protocol and the values that cross it. Three implementations: vLLM
(`server/engine/vllm.py`, production), transformers (`model/transformers_engine.py`, autograd and
machines without vLLM) and scripted (`model/scripted_engine.py`, no weights, for tests).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from model.space import LatentSpace

if TYPE_CHECKING:  # who only resolves a model or catches an error is spared the seconds it takes to load
    import torch


class EngineError(Exception):
    """Base of what an engine raises.

    EngineError
    ├── PromptTooLongError     the prompt with its latents leaves no room for an answer
    ├── PromptRejectedError    the prompt is none that the model reads, such as of tokens it does not have
    ├── PlacementError         the prompt has no place for latents (not rendered by the chat template)
    ├── UnsupportedError       this engine cannot do that (no gradient worker, say)
    ├── ModelUnavailableError  the model's files cannot be found or made
    └── EngineDeadError        the engine, or the process behind it, is gone
    """


class PromptTooLongError(EngineError):
    """The prompt with its latents leaves no room for an answer."""


class PromptRejectedError(EngineError):
    """The prompt is none that the model reads, such as of tokens that it does not have."""


class PlacementError(EngineError):
    """The prompt does not end in the chat template's generation prompt."""


class UnsupportedError(EngineError):
    """The engine cannot do what was asked."""


class ModelUnavailableError(EngineError):
    """The model's files cannot be found or made; the message says what to do next."""


class EngineDeadError(EngineError):
    """The engine, or the process behind it, is gone."""


in_background: ContextVar[bool] = ContextVar("in_background", default=False)
"""Whether nobody waits for what is asked of an engine: what somebody waits for goes before it."""

cache_salt: ContextVar[str | None] = ContextVar("cache_salt", default=None)
"""Salt of the request being served: prompts with different salts share no prefix cache."""


@dataclass(frozen=True)
class SteeredPrompt:
    """A rendered prompt and the latent that goes into it."""

    token_ids: tuple[int, ...]
    """Tokens of the prompt, without latents."""
    latent: torch.Tensor | None = None
    """(L, d) float32, or None for the plain prompt."""
    position: int | None = None
    """Rows go before `token_ids[position]`; None: where the engine's placement says."""


@dataclass(frozen=True)
class Decoding:
    """How one answer is decoded."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    choices: tuple[str, ...] | None = None
    """When given, the answer is one of these strings, held by a grammar."""
    native: Any = None
    """A request as the engine that rendered it decodes it: grammar, penalties, tools, stop words and all.
    When given, only `max_tokens`, `temperature`, `seed`, `logprobs` and a single one of `choices` are read
    beside it, and another engine refuses it (UnsupportedError)."""
    logprobs: bool = False
    """Whether the answer's log-probabilities are asked for."""


@dataclass(frozen=True)
class Generation:
    """One decoded answer."""

    text: str
    token_ids: tuple[int, ...]
    """Tokens of the answer, with the end-of-sequence token when the model ended it."""
    finish_reason: Literal["stop", "length"]
    logprobs: tuple[float, ...] = ()
    """Log-probability of each answer token, before any grammar; () when not asked for."""
    native: Any = None
    """The answer in the engine's own words, in which a client can be given it; None: it has none."""


Finished = Callable[[int, Generation], None]
"""Told (index of the prompt, its answer)."""


@dataclass(frozen=True)
class Label:
    """What a prompt is to be answered: one answer, or a probability for each of several.

    Raises:
        ValueError: an answer is empty, or the probabilities are none.
    """

    answers: tuple[tuple[int, ...], ...]
    """Tokens of each: of a choice as `answer_tokens` writes it, of a free answer as it was decoded."""
    probabilities: tuple[float, ...]
    """Of each answer, above 0; their sum is 1."""
    choices: tuple[str, ...] = ()
    """What a grammar holds every answer to; (): they are free."""

    def __post_init__(self) -> None:
        if not all(self.answers):
            raise ValueError("an answer has no tokens")
        if len(self.answers) != len(self.probabilities):
            raise ValueError(f"{len(self.answers)} answers have {len(self.probabilities)} probabilities")
        if not all(p > 0 for p in self.probabilities) or abs(math.fsum(self.probabilities) - 1) > 1e-4:
            raise ValueError(f"probabilities are not above 0 with a sum of 1: {self.probabilities}")

    @classmethod
    def of(cls, answer: Sequence[int], choices: tuple[str, ...] = ()) -> Label:
        """Return the label that is sure of one answer."""
        return cls((tuple(answer),), (1.0,), choices)


@dataclass(frozen=True)
class LatentGradient:
    """Value and gradient of the weighted log-likelihood of labels with respect to latents."""

    log_likelihood: torch.Tensor
    """(B,) as of `Engine.log_likelihood`."""
    gradient: torch.Tensor
    """(B, L, d): d(weight_b · log_likelihood_b) / d(latent_b), the direction that raises it."""


@dataclass(frozen=True)
class Usage:
    """Compute that calls have spent."""

    prompt_tokens: int = 0
    """Read; what the candidates of one refinement share counts once, for it is kept in a KV cache."""
    generated_tokens: int = 0
    forward_tokens: int = field(default=0)
    """Forward-equivalent tokens: a token of a forward pass counts 1, of forward and backward 3."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.generated_tokens + other.generated_tokens,
            self.forward_tokens + other.forward_tokens,
        )


@runtime_checkable
class Engine(Protocol):
    """A frozen causal language model with soft vectors in its prompt.

    Shapes: L soft vectors, d hidden size, B batch. All tensors float32 on the CPU.
    """

    space: LatentSpace
    """The space whose latents this engine takes; whoever keeps memories says under which id they lie."""

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus latents plus answer, in tokens."""
        ...

    def render(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """Return the tokens of chat messages with the generation prompt."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special tokens left out."""
        ...

    def answer_tokens(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a finished answer: the text's own, then the end of the sequence."""
        ...

    def position(self, token_ids: Sequence[int]) -> int:
        """Return the index before which latents go.

        Raises:
            PlacementError: the prompt does not end as the chat template ends prompts.
        """
        ...

    def neutral_latent(self) -> torch.Tensor:
        """Return the neutral start, (L, d): embeddings of the placement's neutral tokens."""
        ...

    async def keys(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the retrieval keys of plain prompts, (B, d), centred and of norm 1.

        Raises:
            PromptTooLongError, PromptRejectedError, EngineDeadError.
        """
        ...

    async def generate(
        self,
        prompts: Sequence[SteeredPrompt],
        decoding: Decoding | Sequence[Decoding],
        *,
        finished: Finished | None = None,
    ) -> list[Generation]:
        """Decode one answer per prompt, as one batch.

        Args:
            prompts: What is answered.
            decoding: How, all of them or each.
            finished: Told of each answer once it has ended; who gives up waiting still has those.

        Raises:
            LatentRejectedError, PlacementError, PromptTooLongError, EngineDeadError.
        """
        ...

    async def choice_log_probabilities(
        self, prompts: Sequence[SteeredPrompt], choices: tuple[str, ...], *, held: bool
    ) -> torch.Tensor:
        """Return the log-probability of each choice, (B, choices); the probabilities of all are 1 in sum.

        Held to them, as a grammar does: tokens are drawn among those that begin one of the choices as
        `answer_tokens` writes it, and those that are forced cost nothing. Not held: that of saying just this
        and ending there, among all answers that are one of the choices, which tells more of what the model
        knows (docs/log.md) and takes more passes.

        Raises:
            LatentRejectedError, PlacementError, PromptTooLongError, EngineDeadError.
        """
        ...

    async def log_likelihood(self, prompts: Sequence[SteeredPrompt], labels: Sequence[Label]) -> torch.Tensor:
        """Return what each label is worth, (B,): the sum of its answers' values times their probabilities.

        A free answer's value is its mean log-probability per token. That of an answer held to choices is the
        log-probability of being decoded under their grammar: tokens that the grammar forces cost nothing.

        Raises:
            UnsupportedError: the engine has no gradient worker.
            ValueError: an answer is none of its choices.
        """
        ...

    async def latent_gradient(
        self, prompts: Sequence[SteeredPrompt], labels: Sequence[Label], weights: Sequence[float]
    ) -> LatentGradient:
        """Return values as of `log_likelihood` and their weighted gradients by each prompt's latent.

        Raises:
            UnsupportedError, ValueError: as `log_likelihood`.
        """
        ...

    async def close(self) -> None:
        """Release the model."""
        ...
