"""One answer of an arm, and what it cost.

Owns how tokens are counted. Knows nothing of arms or of what is right.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from model.engine import Generation, SteeredPrompt, Usage


@dataclass(frozen=True)
class Sample:
    """One of the answers that an arm chose from."""

    text: str
    tokens: int
    finished: bool
    vote: str | None
    """In a majority; None: it has none."""


@dataclass(frozen=True)
class Reply:
    """One answer of an arm, and what it cost."""

    text: str
    tokens: int
    """Of the answer alone."""
    finished: bool
    generated: int
    """Tokens generated for it in all: rollouts, candidates and rewards included."""
    forward: int
    """Forward-equivalent tokens: a token of a forward pass counts 1, of forward and backward 3."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    """That it was chosen from."""


def reply_of(answer: Generation, prompt: SteeredPrompt, facts: Mapping[str, Any] | None = None) -> Reply:
    """Return an answer with the cost of decoding it alone."""
    generated = len(answer.token_ids)
    latents = 0 if prompt.latent is None else len(prompt.latent)
    return Reply(
        text=answer.text,
        tokens=generated,
        finished=answer.finish_reason == "stop",
        generated=generated,
        forward=len(prompt.token_ids) + latents + generated,
        facts=dict(facts or {}),
    )


def with_search(answer: Reply, used: Usage, prompt_tokens: int, *, found: bool) -> Reply:
    """Return a reply with all that it cost: what was decoded for it, and what searching spent before.

    Args:
        answer: With the cost of decoding it alone.
        used: By searching.
        prompt_tokens: Of its prompt.
        found: Whether the search has found it, so that it was not decoded once more.
    """
    if found:
        if not used.generated_tokens:  # the choice was scored, not sampled
            return answer
        return replace(answer, generated=used.generated_tokens, forward=used.forward_tokens)
    return replace(
        answer,
        generated=answer.generated + used.generated_tokens,
        # Where a search has read the prompt, its cache serves the answer too.
        forward=answer.forward + used.forward_tokens - (prompt_tokens if used.prompt_tokens else 0),
    )
