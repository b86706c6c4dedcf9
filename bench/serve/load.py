"""Clients that ask at the same time.

Owns one round of streamed requests at a fixed concurrency, and what is seen of each from outside.
Knows nothing of which server answers.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import openai

from cli.failure import CommandError
from config.loopback import is_loopback

TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Reply:
    """One answer as its client saw it. Times from the request on, in seconds."""

    first_s: float
    last_s: float
    """When the last piece of text came."""
    tokens: int
    mode: str
    """What ran: header x-latent-mode, with the reason when it was plain; `bare` where there is none."""

    @property
    def gap_s(self) -> float | None:
        """Mean time between tokens; None for an answer of one token."""
        return (self.last_s - self.first_s) / (self.tokens - 1) if self.tokens > 1 else None


@dataclass(frozen=True)
class Round:
    """Answers of one round."""

    seconds: float
    """From the first request to the end of the last answer."""
    replies: tuple[Reply, ...]

    @property
    def tokens_per_s(self) -> float:
        """Throughput: tokens that clients received."""
        return sum(reply.tokens for reply in self.replies) / self.seconds

    @property
    def first_s(self) -> float:
        """Median time to the first token."""
        return float(np.median([reply.first_s for reply in self.replies]))

    @property
    def gap_s(self) -> float:
        """Median over answers of the mean time between tokens."""
        return float(np.median([gap for reply in self.replies if (gap := reply.gap_s) is not None] or [0.0]))

    @property
    def modes(self) -> Counter[str]:
        """What really ran, by how many answers."""
        return Counter(reply.mode for reply in self.replies)


@asynccontextmanager
async def client_of(url: str, api_key: str | None = None) -> AsyncIterator[openai.AsyncOpenAI]:
    """Yield a client of the server at `url`; a proxy from the environment is not asked for loopback."""
    http = openai.DefaultAsyncHttpxClient(timeout=TIMEOUT_S, trust_env=not is_loopback(url))
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key=api_key or "none", max_retries=0, http_client=http
    ) as client:
        yield client


async def load(
    client: openai.AsyncOpenAI,
    model: str,
    questions: Sequence[str],
    extra: Mapping[str, Any],
    *,
    concurrency: int,
    max_tokens: int,
) -> Round:
    """Ask all questions, `concurrency` at a time: a new one begins when one ends.

    Raises:
        CommandError: an answer was refused or broke off.
    """
    waiting = iter(questions)
    replies: list[Reply] = []

    async def ask_one_after_another() -> None:
        for question in waiting:
            replies.append(await _ask(client, model, question, extra, max_tokens))

    begun = time.perf_counter()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(questions))):
                group.create_task(ask_one_after_another())
    except* openai.OpenAIError as errors:
        raise CommandError(f"an answer failed: {errors.exceptions[0]}", "see the server's log") from errors
    except* CommandError as errors:
        raise errors.exceptions[0] from None
    return Round(time.perf_counter() - begun, tuple(replies))


async def _ask(
    client: openai.AsyncOpenAI, model: str, question: str, extra: Mapping[str, Any], max_tokens: int
) -> Reply:
    begun = time.perf_counter()
    raw = await client.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=max_tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=dict(extra),
    )
    first = last = 0.0
    tokens = 0
    async for chunk in raw.parse():
        if any(choice.delta.content for choice in chunk.choices):
            last = time.perf_counter() - begun
            first = first or last
        if chunk.usage is not None:
            tokens = chunk.usage.completion_tokens
    if not tokens or not first:
        raise CommandError("an answer broke off before its end", "see the server's log")
    mode = raw.headers.get("x-latent-mode", "bare")
    if mode == "plain":
        mode = f"plain: {raw.headers.get('x-latent-reason', 'unknown')}"
    return Reply(first, last, tokens, mode)
