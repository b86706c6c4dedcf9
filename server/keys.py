"""Retrieval keys of texts and token prompts, as a request of them would get.

Owns how a text becomes a prompt, and how many prompts the engine is asked at a time. Knows nothing of HTTP or
of what keys are looked up for.
"""

import asyncio
from collections.abc import Sequence

import numpy as np

from memory.episode import Array
from model.engine import PromptRejectedError, PromptTooLongError
from server.errors import InvalidRequestError
from server.gateway import Gateway

AT_A_TIME = 32
"""Prompts that the engine is given at once, so that requests come in between."""
LONGEST_TOKEN = 64
"""Characters per token: a text that is longer than so many contexts is not even rendered."""

Prompt = str | Sequence[int]
"""A user's message, or the tokens of a rendered prompt."""


async def keys_of(gateway: Gateway, prompts: Sequence[Prompt], param: str) -> tuple[Array, int]:
    """Return the keys, (B, d) of norm 1, and how many tokens were read for them.

    A text gets the key of a chat request with nothing but this user's message, tokens that of the prompt they
    are. Exploring ends meanwhile, as it does for requests.

    Raises:
        InvalidRequestError: one of them is no prompt; names `param`.
        EngineDeadError: the engine is gone.
    """
    keys, read = [], 0
    with gateway.steering.explorer.client():
        for start in range(0, len(prompts), AT_A_TIME):
            rendered = []
            for prompt in prompts[start : start + AT_A_TIME]:
                rendered.append(_tokens(gateway, prompt, param))
                await asyncio.sleep(0)  # rendering holds up the event loop
            try:
                found = await gateway.engine.keys(rendered)
            except (PromptTooLongError, PromptRejectedError) as error:
                raise InvalidRequestError(str(error), param) from error
            keys.append(found.numpy())
            read += sum(map(len, rendered))
    return np.concatenate(keys), read


def _tokens(gateway: Gateway, prompt: Prompt, param: str) -> tuple[int, ...]:
    engine = gateway.engine
    if not isinstance(prompt, str):
        return tuple(prompt)
    if len(prompt) > LONGEST_TOKEN * engine.max_model_len:
        raise InvalidRequestError(
            f"a text of {len(prompt)} characters is longer than the context of {engine.max_model_len} tokens",
            param,
        )
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError("a text holds lone surrogates, which no tokenizer reads", param) from None
    return engine.render([{"role": "user", "content": prompt}])
