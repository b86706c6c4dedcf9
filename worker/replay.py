"""What replaying remembered answers measures and maximises.

Owns the likelihood of an episode's answer and its gradient with respect to latents. Knows a model only as
an `Engine`; knows nothing of networks, weights or decisions.

A free answer is worth the mean log-probability of its tokens. One that a grammar held to a few choices is
worth the log-probability of being the one that is decoded under that grammar: the likelihood of its tokens
would mostly tell how likely it is that the model names any of them at all, which the grammar sees to anyway.
"""

from collections.abc import Sequence

import torch

from memory.episode import Episode
from model.engine import Engine, Label, LatentGradient, SteeredPrompt


async def likelihoods(
    engine: Engine, episodes: Sequence[Episode], latents: Sequence[torch.Tensor | None]
) -> torch.Tensor:
    """Return the likelihood of each episode's answer, (B,), under latents of shape (L, d) or none.

    Raises:
        EngineError: the engine failed.
    """
    return await engine.log_likelihood(_prompts(episodes, latents), _labels(engine, episodes))


async def gradients(
    engine: Engine, episodes: Sequence[Episode], latents: torch.Tensor, weights: torch.Tensor
) -> LatentGradient:
    """Return likelihoods and the gradient of weight times likelihood by each latent.

    Args:
        engine: The model.
        episodes: B of them.
        latents: (B, L, d).
        weights: (B,).

    Raises:
        EngineError: the engine failed.
    """
    return await engine.latent_gradient(
        _prompts(episodes, list(latents)), _labels(engine, episodes), weights.tolist()
    )


def answer_of(engine: Engine, episode: Episode) -> tuple[int, ...]:
    """Return the tokens to replay: a choice as the grammar writes it, however it was split when decoded."""
    return engine.answer_tokens(episode.answer_text) if _held(episode) else episode.answer_token_ids


def _labels(engine: Engine, episodes: Sequence[Episode]) -> list[Label]:
    return [Label.of(answer_of(engine, episode), _held(episode)) for episode in episodes]


def _held(episode: Episode) -> tuple[str, ...]:
    """Return the choices that hold the answer; () for a free one."""
    return episode.choices if episode.answer_text in episode.choices else ()


def _prompts(episodes: Sequence[Episode], latents: Sequence[torch.Tensor | None]) -> list[SteeredPrompt]:
    return [SteeredPrompt(e.prompt_token_ids, z) for e, z in zip(episodes, latents, strict=True)]
