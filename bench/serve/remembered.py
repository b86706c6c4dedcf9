"""A memory that has something to recall at every question.

Owns the episodes that `bench serve` puts into an empty memory before the server starts. Their keys are real,
those of questions like the ones that are asked; their latents are the neutral one, slightly disturbed, for
what a latent says changes no cost. Refining them by requests would take long, and may remember nothing: what
does not earn its place is not recalled.
"""

from collections.abc import Sequence

import torch

from config.settings import Settings
from memory.episode import Episode
from memory.open import open_store
from model.engine import Engine
from model.transformers_engine import TransformersEngine

DISTURBANCE = 0.05
"""Length of a latent's way from the neutral one, relative to the norm of that."""
REWARD, PLAIN_REWARD = 0.9, 0.5


async def remember(settings: Settings, model_path: str, asked: Sequence[str]) -> None:
    """Remember one episode per question in the store that `settings` name.

    Raises:
        ModelUnavailableError: the model cannot be loaded for its keys.
        StoreUnavailableError: the folder cannot be used.
    """
    engine = TransformersEngine(model_path, length=settings.latent_length, placement=settings.placement)
    try:
        episodes = await episodes_of(engine, asked)
        store = open_store(settings, engine.space.id, engine.space.length, engine.space.hidden_size)
        try:
            store.add(episodes)
        finally:
            store.close()
    finally:
        await engine.close()


async def episodes_of(engine: Engine, asked: Sequence[str]) -> list[Episode]:
    """Return an episode per question."""
    prompts = [engine.render([{"role": "user", "content": question}]) for question in asked]
    keys = (await engine.keys(prompts)).numpy()  # (B, d)
    neutral = engine.neutral_latent()
    noise = torch.Generator().manual_seed(0)
    found = []
    for prompt, key, question in zip(prompts, keys, asked, strict=True):
        way = torch.randn(neutral.shape, generator=noise)
        latent = neutral + way * (DISTURBANCE * neutral.norm() / way.norm())
        found.append(
            Episode(
                space=engine.space.id,
                key=key,
                latent=latent.numpy(),
                reward=REWARD,
                plain_reward=PLAIN_REWARD,
                signals={"confidence": REWARD},
                prompt_token_ids=prompt,
                answer_token_ids=prompt[-1:],
                prompt_text=question,
                answer_text="",
            )
        )
    return found
