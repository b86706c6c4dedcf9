"""A handful of real episodes: the small model sorts words, and its own choice is what is remembered."""

import asyncio
from collections.abc import Sequence

import torch

from memory.episode import Episode
from model.engine import Decoding, Engine, SteeredPrompt

# fmt: off
WORDS = (
    "apple", "tiger", "hammer", "banana", "horse", "saw", "cherry", "eagle", "drill", "grape",
    "rabbit", "pliers", "mango", "otter", "wrench", "peach", "zebra", "chisel", "plum", "camel",
)
# fmt: on
KINDS = ("fruit", "animal", "tool")


def real_episodes(engine: Engine, words: Sequence[str] = WORDS) -> list[Episode]:
    """Return one episode per word, its latent close to the neutral start."""
    prompts = [engine.render([{"role": "user", "content": f"Fruit, animal or tool? {w}"}]) for w in words]
    keys = asyncio.run(engine.keys(prompts)).numpy()
    answers = asyncio.run(
        engine.generate([SteeredPrompt(prompt) for prompt in prompts], Decoding(8, choices=KINDS))
    )
    noise = torch.Generator().manual_seed(0)
    neutral = engine.neutral_latent()
    return [
        Episode(
            space=engine.space.id,
            key=key,
            latent=(neutral + 0.03 * torch.randn(neutral.shape, generator=noise)).numpy(),
            reward=0.8,
            signals={"consistency": 0.8},
            prompt_token_ids=prompt,
            answer_token_ids=answer.token_ids,
            prompt_text=engine.decode(prompt),
            answer_text=answer.text,
            plain_reward=0.4,
        )
        for prompt, key, answer in zip(prompts, keys, answers, strict=True)
    ]
