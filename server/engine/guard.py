"""What keeps clients of vLLM's app away from our latents' door.

The engine takes prompt embeddings because latents travel as such; clients must not send any: vLLM
would `torch.load` their data (CVE-2025-62164). Owns the refusals, and what clients see of latents in
token counts. Knows nothing of steering.
"""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def renderer_without_embeds() -> Iterator[None]:
    """Inside, engines get a renderer that knows of no prompt embeddings.

    With them vLLM adds a marker token to the tokenizer, beyond the model's vocabulary. A client that
    wrote it would be refused only while embeddings are enabled on the front end, and end the engine
    otherwise; without the marker its text is text.
    """
    from vllm.v1.engine import async_llm

    make_renderer = async_llm.renderer_from_config

    def make(config: Any) -> Any:
        config.model_config.enable_prompt_embeds = False
        try:
            return make_renderer(config)
        finally:
            config.model_config.enable_prompt_embeds = True

    async_llm.renderer_from_config = make
    try:
        yield
    finally:
        async_llm.renderer_from_config = make_renderer


def close_client_embeds(llm: Any) -> None:
    """Make prompt embeddings of clients a 400 naming `prompt_embeds`; ours still pass.

    vLLM asks the front end's model config about every request of a client, and the engine process's
    own copy about what it computes.
    """
    llm.model_config.enable_prompt_embeds = False


def hide_placeholders(llm: Any) -> None:
    """Report prompts with latents without the placeholders' tokens, so that usage counts real ones."""
    generate = llm.generate

    def generate_visible(prompt: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        outputs: AsyncGenerator[Any, None] = generate(prompt, *args, **kwargs)
        mask = prompt.get("is_token_ids") if isinstance(prompt, dict) else None
        return outputs if mask is None or all(mask) else _visible(outputs, mask)

    llm.generate = generate_visible


async def _visible(outputs: AsyncGenerator[Any, None], mask: Sequence[bool]) -> AsyncGenerator[Any, None]:
    try:
        async for output in outputs:
            if output.prompt_token_ids is not None:
                output.prompt_token_ids = real_tokens(output.prompt_token_ids, mask)
            if output.num_cached_tokens:
                output.num_cached_tokens = sum(mask[: output.num_cached_tokens])
            yield output
    finally:
        await outputs.aclose()


def real_tokens(token_ids: Sequence[int], mask: Sequence[bool]) -> list[int]:
    """Return the tokens whose mask is True."""
    return [token for token, real in zip(token_ids, mask, strict=True) if real]
