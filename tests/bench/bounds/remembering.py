"""Episodes of a stream's questions, as a day would have left them."""

from collections.abc import Sequence
from typing import Any

from bench.stream.loop import Loop
from memory.episode import Episode
from model.engine import Engine
from server.steering.prompt import RenderedPrompt


async def remember(
    loop: Loop,
    engine: Engine,
    prompts: Sequence[RenderedPrompt],
    answers: Sequence[tuple[Sequence[int], str]],
    **fields: Any,
) -> None:
    """Store an episode for each prompt with its answer's tokens and text, whose latent is the neutral one."""
    keys = (await engine.keys([prompt.token_ids for prompt in prompts])).numpy()
    loop.gateway.store.add(
        [
            Episode(
                space=engine.space.id,
                key=key,
                latent=engine.neutral_latent().numpy(),
                reward=0.9,
                prompt_token_ids=prompt.token_ids,
                answer_token_ids=tuple(tokens),
                prompt_text=prompt.text,
                answer_text=text,
                **fields,
            )
            for key, prompt, (tokens, text) in zip(keys, prompts, answers, strict=True)
        ]
    )
